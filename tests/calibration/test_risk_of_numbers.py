"""Risks of numbers: how far answers may be from the full model's, as a share and on average."""

from typing import Any

import numpy as np
import pytest
import torch
from made_records import made_meta

from offramp.calibration import OperatingPoint, Records, calibrate, evaluate, replay
from offramp.calibration.risk.losses import loss_named
from offramp.calibration.risk.methods import METHODS
from offramp.calibration.risk.paths import PATHS
from offramp.errors import OfframpError


def made_numbers(count: int, seed: int = 0, *, unit: float = 1.0, split: str = "test") -> Records:
    """A regression model whose exits come closer to its last one, and say how close.

    Numbers are multiplied by ``unit``.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = 10 * torch.rand(count, generator=generator)
    spread = 4 * torch.rand(count, generator=generator)
    noise = torch.randn(count, 4, generator=generator)
    values = labels[:, None] + noise * spread[:, None] * torch.tensor([1.0, 0.5, 0.25, 0.1])
    certainty = (1 - spread / 4)[:, None].expand(count, 4).contiguous()
    meta = made_meta(4, task="regression", split=split)
    signals = {"certainty": certainty}
    return Records.from_logits(unit * values[..., None], unit * labels, meta=meta, signals=signals)


@pytest.mark.parametrize("policy", ["learned", "settled"])
@pytest.mark.parametrize("path", PATHS.names())
def test_numbers_that_deviate_from_the_full_models(policy: str, path: str) -> None:
    records = made_numbers(3000, split="calibration")
    point = calibrate(
        records, policy=policy, risk=0.05, risk_kind="deviation", tolerance=1.5, path=path
    )
    held_out = made_numbers(4000, seed=1)
    decisions = replay(point.policy_object(), held_out, point.active)
    far = (decisions.prediction - held_out.prediction[:, -1]).abs() > 1.5
    assert far.double().mean() <= 0.06
    assert point.cost_share < 1
    assert "get a number more than 1.5 away from the full model's" in str(point.promise)
    assert "--tolerance 1.5" in point.asked.flags
    with pytest.raises(OfframpError, match=r"'consistency' is for classification.*use: deviation"):
        calibrate(records, policy=policy, risk=0.05)


def proved(records: Records, **wanted: Any) -> OperatingPoint:
    asked = {"policy": "learned", "risk": 0.3, "risk_kind": "mean_deviation", "cap": 4.0}
    return calibrate(records, **asked | wanted)


def mean_distance(point: OperatingPoint, records: Records, cap: float) -> float:
    said = replay(point.policy_object(), records, point.active).prediction
    return float((said - records.prediction[:, -1]).abs().clamp(max=cap).double().mean())


@pytest.mark.parametrize("policy", ["learned", "settled"])
@pytest.mark.parametrize("path", PATHS.names())
@pytest.mark.parametrize("method", METHODS.names())
def test_the_mean_distance_is_proved_in_the_unit_of_the_data(
    policy: str, path: str, method: str
) -> None:
    records = made_numbers(3000, split="calibration")
    point = proved(records, policy=policy, path=path, method=method)
    assert point.cost_share < 1
    held_out = made_numbers(4000, seed=1)
    found = evaluate(point, held_out)
    assert found.taken == pytest.approx(mean_distance(point, held_out, 4.0))
    assert found.taken <= 0.33
    assert "away on average" in found.verdict
    assert (
        "the mean distance from the full model's number is at most 0.3, distances above 4 counted "
        "as 4"
    ) in str(point.promise)


def test_distances_stop_at_the_cap() -> None:
    records = made_numbers(500)
    away = (records.prediction - records.prediction[:, -1:]).abs()
    losses = loss_named("mean_deviation", cap=1.5).at_exits(records)
    assert torch.equal(losses, torch.where(away > 1.5, 1.5, away))
    assert losses.max() == 1.5
    assert losses[:, -1].abs().max() == 0


def test_promises_of_distances_are_kept_on_other_draws() -> None:
    """Broken in at most δ of the draws; on average over them with conformal risk control."""
    truth = made_numbers(20_000, seed=99)
    risks: dict[str, list[float]] = {name: [] for name in METHODS.names()}
    for seed in range(40):
        records = made_numbers(600, seed=seed, split="calibration")
        for method, found in risks.items():
            point = proved(records, method=method, path="shared")
            found.append(mean_distance(point, truth, 4.0))
    broken = {name: sum(risk > 0.3 for risk in found) for name, found in risks.items()}
    assert max(broken["ltt"], broken["ucb"]) <= 8  # 10 % of 40, and three standard deviations
    assert broken["naive"] > broken["ltt"]
    assert np.mean(risks["crc"]) <= 0.3
    assert all(np.mean(risks[name]) > 0.1 for name in risks)  # something is saved at all


@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.parametrize("path", PATHS.names())
def test_millimetres_are_proved_like_kilometres(method: str, path: str) -> None:
    unit = 2.0**20
    near, far = (
        proved(
            made_numbers(1000, unit=scale, split="calibration"),
            risk=0.3 * scale,
            cap=4.0 * scale,
            method=method,
            path=path,
        )
        for scale in (1 / unit, unit)
    )
    assert near.active == far.active
    assert near.policy["thresholds"] == pytest.approx(far.policy["thresholds"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cap": None}, "'mean_deviation' needs a cap above 0: distances"),
        ({"cap": -1.0}, "needs a cap above 0"),
        ({"cap": float("inf")}, "needs a cap above 0"),
        ({"tolerance": 1.0}, r"takes no tolerance \(only 'deviation' does\)"),
        ({"risk_kind": "deviation"}, r"takes no cap \(only 'mean_deviation' does\)"),
        ({"risk": 4.0}, "risk = 4, but a mean_deviation risk must be between 0 and 4"),
        ({"risk": 0.01}, "even if none of them loses anything, 920 are needed"),
        ({"risk": None, "risk_kind": None, "max_drop": 1.0}, "cap goes with risk, not with max"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OfframpError, match=said):
        proved(made_numbers(200, split="calibration"), **options)
