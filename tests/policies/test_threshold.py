"""Confidence, entropy and margin: formulas, strictness, limits."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies import Confidence, Entropy, Margin, ThresholdPolicy

FAMILIES = [Confidence, Entropy, Margin]


def said(*probabilities: float) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.tensor([probabilities]).log())


def exits(policy: ThresholdPolicy, logits: Tensor) -> list[int]:
    """Exit of every sample for logits (B, K, C)."""
    last = logits.shape[1] - 1
    found = [last] * len(logits)
    for k in reversed(range(last)):
        stop, _, _ = policy.step(k, SimpleNamespace(logits=logits[:, k]), ())
        found = [k if stops else at for stops, at in zip(stop.tolist(), found, strict=True)]
    return found


def test_entropy_of_the_card() -> None:
    assert Entropy([0.0]).read(0, said(0.7, 0.2, 0.1)).item() == pytest.approx(-0.801819, abs=1e-6)
    assert Entropy([0.0]).read(0, said(0.5, 0.5)).item() == pytest.approx(-0.693147, abs=1e-6)
    # the card's normalised confidence of (.9, .1)
    normalised = 1 + Entropy([0.0]).read(0, said(0.9, 0.1)).item() / math.log(2)
    assert normalised == pytest.approx(0.531004, abs=1e-6)


def test_confidence_and_margin() -> None:
    assert Confidence([0.0]).read(0, said(0.7, 0.2, 0.1)).item() == pytest.approx(0.7)
    assert Margin([0.0]).read(0, said(0.7, 0.1, 0.2)).item() == pytest.approx(0.5)


def test_stops_above_the_threshold_strictly() -> None:
    outputs = said(0.5, 0.5)  # confidence exactly 0.5
    assert not Confidence([0.5, 0]).step(0, outputs, ())[0].item()
    assert Confidence([0.4999, 0]).step(0, outputs, ())[0].item()


def test_entropy_stops_below_so_many_nats() -> None:
    policy = Entropy.shared(-0.6, 3)
    assert policy.step(0, said(0.9, 0.1), ())[0].item()  # 0.325 nats
    assert not policy.step(0, said(0.5, 0.5), ())[0].item()


def test_temperature_divides_logits_and_leaves_the_answer() -> None:
    logits = torch.randn(6, 5)
    policy = Confidence([0.5, 0.5], temperatures=[2.0, 1.0])
    expected = torch.softmax(logits / 2, dim=-1).amax(dim=-1)
    assert torch.equal(policy.read(0, SimpleNamespace(logits=logits)), expected)
    assert policy.column() is None
    _, answer, _ = policy.step(0, SimpleNamespace(logits=logits), ())
    assert answer is logits


@pytest.mark.parametrize("family", FAMILIES)
@given(scale=st.floats(0, 200), seed=st.integers(0, 1000))
def test_limits(family: type[ThresholdPolicy], scale: float, seed: int) -> None:
    logits = scale * torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(seed))
    assert exits(family.shared(family.always, 3), logits) == [0] * 8
    assert exits(family.shared(family.never, 3), logits) == [2] * 8


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 1000), low=st.floats(0, 1), high=st.floats(0, 1))
def test_raising_a_threshold_never_lowers_an_exit(
    family: type[ThresholdPolicy], seed: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    if family is Entropy:
        low, high = 3 * (low - 1), 3 * (high - 1)
    logits = 2 * torch.randn(16, 4, 5, generator=torch.Generator().manual_seed(seed))
    early, late = exits(family.shared(low, 4), logits), exits(family.shared(high, 4), logits)
    assert all(a <= b for a, b in zip(early, late, strict=True))


def test_thresholds_must_fit_the_model() -> None:
    with pytest.raises(OfframpError, match=r"3 thresholds.*9 exits"):
        Confidence.shared(0.8, 3).check(9)


def test_half_precision_scores_are_computed_in_float32() -> None:
    logits = torch.randn(4, 100).to(torch.bfloat16)
    reading = Confidence([0.5]).read(0, SimpleNamespace(logits=logits))
    assert reading.dtype == torch.float32
