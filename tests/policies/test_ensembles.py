"""ZTW's ensembles: the card's numbers, the formulas, and the fit."""

import math
from types import SimpleNamespace

import pytest
import torch
from policy_family import CLASSES, EXITS, records
from torch import Tensor
from torch.nn import functional as F

from offramp.calibration import replay
from offramp.policies import Arithmetic, Ensemble, Geometric
from offramp.policies.ensemble_fit import fit_ensembles

SAID = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def flat(offset: float, rows: int = 2, classes: int = 3) -> dict[str, list[list[float]]]:
    """w = 0 and the same offset everywhere."""
    return {
        "weights": [[1.0] * (m + 1) for m in range(rows)],
        "offsets": [[offset] * classes for _ in range(rows)],
    }


def answers(policy: Ensemble, logits: Tensor) -> list[Tensor]:
    """Answers (B, C) after each exit, for logits (B, K, C)."""
    memory, found = policy.start(len(logits)), []
    for k in range(logits.shape[1]):
        outputs = SimpleNamespace(logits=logits[:, k])
        _, answer, memory = policy.follow(k, outputs, memory)
        found.append(answer)
    return found


@pytest.mark.parametrize(
    ("family", "offset", "expected"),
    [
        (Geometric, 0.0, [0.506480, 0.307196, 0.186324]),
        (Arithmetic, 1.0, [0.399786, 0.336525, 0.263690]),
        (Arithmetic, 0.0, [0.499464, 0.341312, 0.159224]),
    ],
)
def test_multi_exit_card_item_8(
    family: type[Ensemble], offset: float, expected: list[float]
) -> None:
    policy = family.shared(1.0, 3, **flat(offset))
    found = answers(policy, SAID[None])[1]
    assert found.exp()[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("family", [Geometric, Arithmetic])
def test_formulas_with_any_weights(family: type[Ensemble], last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = 4 if last else 3
    w = torch.randn(4, 4, generator=generator)
    b = torch.randn(4, 5, generator=generator)
    logits = torch.randn(6, 4, 5, generator=generator)
    policy = family(
        [1.0] * 4,
        [w[m, : m + 1].exp().tolist() for m in range(rows)],
        family.offset(b)[:rows].tolist(),
    )
    policy.check(4)
    for m, answer in enumerate(answers(policy, logits)):
        p = logits[:, : m + 1].softmax(-1)
        weights = w[m, : m + 1].exp()[:, None]
        if m == rows:
            expected = logits[:, m].softmax(-1)
        elif family is Geometric:
            expected = ((weights * p.log()).mean(1) + b[m]).softmax(-1)
        else:
            total = (weights * p).sum(1) + b[m].exp()
            expected = total / total.sum(-1, keepdim=True)
        torch.testing.assert_close(answer.softmax(-1), expected)


def test_an_exit_that_is_off_counts_as_one_that_knows_nothing() -> None:
    policy = Geometric.shared(0.9, EXITS, **Geometric.fit(records()))
    logits = records().logits.clone()
    logits[:, 1] = 0.7  # every class equally likely
    memory, full = policy.start(len(logits)), policy.start(len(logits))
    for k in range(EXITS - 1):
        outputs = SimpleNamespace(logits=logits[:, k])
        _, with_it, full = policy.follow(k, outputs, full)
        if k != 1:
            _, without, memory = policy.follow(k, outputs, memory)
            torch.testing.assert_close(without, with_it)


def nll(policy: Ensemble, m: int) -> float:
    return F.cross_entropy(answers(policy, records().logits)[m], records().labels).item()


@pytest.mark.parametrize("family", [Geometric, Arithmetic])
def test_the_fit_beats_the_start_and_every_exit_alone(family: type[Ensemble]) -> None:
    fitted = family.shared(1.0, EXITS, **family.fit(records()))
    start = family.shared(
        1.0, EXITS, **flat(0.0 if family is Geometric else 1.0, EXITS - 1, CLASSES)
    )
    for m in range(1, EXITS - 1):
        alone = F.cross_entropy(records().logits[:, m], records().labels).item()
        assert nll(fitted, m) < nll(start, m)
        assert nll(fitted, m) < alone


@pytest.mark.parametrize("family", [Geometric, Arithmetic])
def test_the_fit_is_a_minimum(family: type[Ensemble]) -> None:
    parameters = family.fit(records())

    def value(weights: list[list[float]]) -> float:
        changed = family.shared(1.0, EXITS, weights=weights, offsets=parameters["offsets"])
        prior = sum(math.log(weight) ** 2 for weight in weights[2]) / (2 * len(records()))
        return nll(changed, 2) + prior

    best = value(parameters["weights"])
    for j, factor in ((0, 0.8), (1, 1.25), (2, 0.8), (2, 1.25)):
        weights = [list(row) for row in parameters["weights"]]
        weights[2][j] *= factor
        assert value(weights) > best


def test_options_of_the_fit() -> None:
    plain = fit_ensembles(Arithmetic, records(), offsets=False)
    assert plain["offsets"] == [[0.0] * CLASSES] * (EXITS - 1)
    whole = fit_ensembles(Geometric, records(), include_last=True)
    assert len(whole["weights"]) == EXITS
    policy = Geometric.shared(1.0, EXITS, **whole)
    assert nll(policy, EXITS - 1) < nll(
        Geometric.shared(1.0, EXITS, **Geometric.fit(records())), EXITS - 1
    )
    with torch.no_grad():
        assert fit_ensembles(Geometric, records(), include_last=True) == whole


def test_an_ensemble_is_right_more_often_than_its_exits() -> None:
    policy = Geometric([0.0 if k == 3 else 1.0 for k in range(EXITS)], **Geometric.fit(records()))
    right = (replay(policy, records()).prediction == records().labels).float().mean()
    assert right > records().accuracy[3] + 0.02
