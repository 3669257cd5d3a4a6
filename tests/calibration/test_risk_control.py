"""Risk promises: what is proved, on which samples, and what the sentence says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_costs, made_logits, made_meta, made_records
from torch import Tensor

from offramp.calibration import OperatingPoint, Records, calibrate, evaluate, replay
from offramp.calibration.risk.losses import LOSSES, loss_named
from offramp.calibration.risk.methods import METHODS
from offramp.calibration.risk.paths import PATHS, Quest, decide_along
from offramp.calibration.splits import cut
from offramp.errors import OfframpError
from offramp.policies import POLICIES, Confidence, policy_from_config
from offramp.runtime.prediction import ExitTables, Prediction, temperatures_of

CLASSES = [name for name in LOSSES.names() if "classification" in LOSSES.get(name).tasks]


def quest(kind: str = "consistency", policy: str = "confidence", exits: int = 5) -> Quest:
    meta = made_meta(exits)
    return Quest(POLICIES.get(policy), {}, loss_named(kind), 0.05, made_costs(exits), meta)


def risk_of(point: OperatingPoint, records: Records) -> float:
    decisions = replay(point.policy_object(), records, point.active)
    return float(point.loss.along([decisions], records).mean())


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("method", METHODS.names())
def test_every_kind_and_method(kind: str, method: str) -> None:
    records = made_records(3000, 5, 6)
    risk = 0.05 * loss_named(kind).bound
    point = calibrate(records, risk=risk, risk_kind=kind, method=method)
    proof = cut(records, {"thresholds": 0.35, "proof": 0.65})["proof"]
    assert point.samples == {"thresholds": 1050, "proof": 1950}
    assert point.promise.samples == point.n == len(proof)
    assert risk_of(point, proof) <= risk + 1e-9
    assert point.cost_share < 1
    held_out = evaluate(point, made_records(2000, 5, 6, seed=3, split="test"))
    assert held_out.kept == (held_out.taken <= risk + 1e-9)
    assert str(point.promise) in held_out.verdict


def test_the_sentence_says_what_is_proved_and_on_what() -> None:
    point = calibrate(made_records(3000, 5, 6), risk=0.05, delta=0.2)
    assert str(point.promise) == (
        "with probability at least 80 % over the calibration draw, at most 5 % of samples get "
        "another label than the full model's (Learn-then-Test, Hoeffding–Bentkus, 1,950 proof "
        "samples of the calibration split)"
    )
    naive = calibrate(made_records(3000, 5, 6), risk=0.05, method="naive")
    assert "nothing is proved" in str(naive.promise)
    crc = calibrate(made_records(3000, 5, 6), risk=0.05, method="crc", risk_kind="gap")
    assert str(crc.promise).startswith("on average over calibration draws, at most 5 % more of")
    assert crc.promise.delta is None


def test_points_with_a_proof_survive_the_file(tmp_path: Path) -> None:
    point = calibrate(made_records(2000, 5, 6), risk=0.05)
    point.save(tmp_path / "point.json")
    assert OperatingPoint.load(tmp_path / "point.json") == point


@pytest.mark.parametrize("policy", [name for name in POLICIES.names() if name != "settled"])
def test_every_family_has_a_path_to_the_full_model(policy: str) -> None:
    records = made_records(1500, 5, 6)
    for path in PATHS.names():
        point = calibrate(records, policy=policy, risk=0.2, path=path)
        assert risk_of(point, made_records(3000, 5, 6, seed=5)) < 0.25
        costs = [one.cost for one in point.front]
        assert costs == sorted(costs)


def test_paths_run_from_nobody_leaving_to_the_cheapest() -> None:
    records = made_records(1500, 5, 6)
    for name in PATHS.names():
        path = PATHS.get(name)().make(quest(), {"thresholds": records})
        decided = decide_along(path, records)
        assert decided[0].exit_share == (0.0, 0.0, 0.0, 0.0, 1.0)
        risks = loss_named("consistency").along(decided, records).mean(axis=0)
        assert risks[0] == 0
        assert np.all(np.diff(risks) > -0.02)  # rising, but for noise
        assert risks[-1] > 0.1
        assert decided[-1].exit_share[0] > 0.9
        for step, decisions in zip(path, decided, strict=True):
            assert torch.equal(decisions.exit, replay(step.policy, records, step.active).exit)


@pytest.mark.parametrize("policy", ["confidence", "voting", "patience"])
def test_what_is_shared_along_a_path_changes_no_decision(policy: str) -> None:
    records = made_records(400, 5, 6)
    family = POLICIES.get(policy)
    asked = quest(policy=policy)
    fitted = family.fit(records)
    path = PATHS.get("shared")().make(
        Quest(family, fitted, asked.loss, 0.05, asked.costs, asked.meta), {}
    )
    for step, decisions in zip(path, decide_along(path, records), strict=True):
        alone = replay(step.policy, records, step.active)
        assert torch.equal(decisions.exit, alone.exit)
        assert torch.equal(decisions.prediction, alone.prediction)


def test_limits() -> None:
    """A threshold nobody exceeds is the full model, one that everybody exceeds the first exit."""
    records = made_records(500, 5, 6)
    for threshold, exit in ((Confidence.never, 4), (np.inf, 4), (Confidence.always, 0), (-1.0, 0)):
        decisions = replay(Confidence.shared(threshold, 5), records)
        assert (decisions.exit == exit).all()
        assert torch.equal(decisions.prediction, records.prediction[:, exit])
    for kind in CLASSES:
        full = replay(Confidence.shared(1.0, 5), records)
        assert np.abs(loss_named(kind).along([full], records)).max() == 0
    assert (
        replay(policy_from_config({"name": "patience", "patience": 5}), records).exit == 4
    ).all()


def test_losses_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]]))  # one sample, two exits
    records = Records.from_logits(logits, torch.tensor([0]), meta=made_meta(2))
    at = {kind: loss_named(kind).at_exits(records)[0, 0].item() for kind in CLASSES}
    assert at["consistency"] == 1
    assert at["gap"] == -1  # the early exit alone is right
    early, full = 0.5**2 + 0.3**2 + 0.2**2, 0.9**2 + 0.8**2 + 0.1**2
    assert at["brier_gap"] == pytest.approx(early - full, abs=1e-6)
    early, full = 0.5**2 + 0.7**2 + 0.2**2, 0.1**2 + 0.2**2 + 0.1**2
    assert at["brier_consistency"] == pytest.approx(early - full, abs=1e-6)
    overlap = (0.5 * 0.1) ** 0.5 + (0.3 * 0.8) ** 0.5 + (0.2 * 0.1) ** 0.5
    assert at["hellinger"] == pytest.approx(1 - overlap, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 20))
def test_losses_stay_within_their_bounds(seed: int, scale: float) -> None:
    logits, labels = made_logits(50, 4, 5, seed, scale)
    records = Records.from_logits(logits, labels, meta=made_meta(4))
    for kind in CLASSES:
        loss = loss_named(kind)
        values = loss.at_exits(records)
        assert values.max() <= loss.bound + 1e-6
        assert values[:, -1].abs().max() == 0
        if loss.binary:
            assert set(values.clamp_min(0).unique().tolist()) <= {0.0, loss.bound}


def test_consistency_needs_no_labels() -> None:
    logits, labels = made_logits(2000, 5, 6)
    known = Records.from_logits(logits, labels, meta=made_meta(5))
    unknown = Records.from_logits(logits, torch.zeros_like(labels), meta=made_meta(5))
    points = [calibrate(records, risk=0.05) for records in (known, unknown)]
    assert points[0].policy == points[1].policy


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_proof_never_sees_what_the_path_was_made_from(seed: int) -> None:
    """Samples of one part change nothing that the other decides."""
    logits, labels = made_logits(400, 4, 5, seed)
    records = Records.from_logits(logits, labels, meta=made_meta(4))
    parts = cut(records, {"thresholds": 0.35, "proof": 0.65})
    shuffled = logits.clone()
    shuffled[parts["proof"].ids] = shuffled[parts["proof"].ids].flip(0)  # other proof samples
    other = Records.from_logits(shuffled, labels, meta=made_meta(4))
    maker = PATHS.get("per-exit")()
    path = maker.make(quest(exits=4), cut(records, {"thresholds": 0.35, "proof": 0.65}))
    assert path == maker.make(quest(exits=4), cut(other, {"thresholds": 0.35, "proof": 0.65}))


def test_temperatures_have_samples_of_their_own() -> None:
    records = made_records(2000, 4, 5)
    point = calibrate(records, risk=0.1, temperatures=True)
    assert list(point.samples) == ["fit", "thresholds", "proof"]
    assert sum(point.samples.values()) == 2000
    assert any(value != 1 for value in point.policy["temperatures"])
    shared = calibrate(records, risk=0.1, path="shared")
    assert shared.samples == {"proof": 2000}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if not LOSSES.get(kind).binary])
@pytest.mark.parametrize("path", PATHS.names())
def test_what_is_proved_is_what_is_delivered(kind: str, path: str) -> None:
    """Early exits are four times too sure of themselves, and so scaled back."""

    def overconfident(seed: int, **changes: Any) -> Records:
        logits, labels = made_logits(3000, 4, 5, seed)
        logits[:, :-1] *= 4
        return Records.from_logits(logits, labels, meta=made_meta(4, **changes))

    records, held_out = overconfident(0), overconfident(1, split="test")
    wanted = {"risk": 0.12, "risk_kind": kind, "path": path}
    point = calibrate(records, temperatures=True, **wanted)
    assert min(point.policy["temperatures"][:-1]) > 2
    policy = point.policy_object()
    proof = cut(records, {name: n / 3000 for name, n in point.samples.items()})["proof"]
    for samples in (proof, held_out):
        left = replay(policy, samples, point.active).exit
        tables = ExitTables(torch.zeros(4), None, temperatures_of(policy))
        rows = torch.arange(len(samples))
        delivered = Prediction(samples.logits[rows, left], left, tables).probs
        full = Prediction(samples.logits[:, -1], torch.full_like(left, 3), tables).probs
        expected = distance_by_hand(kind, delivered, full, samples.labels)
        assert risk_of(point, samples) == pytest.approx(expected, abs=1e-5)
        plain = float(
            loss_named(kind).along([replay(policy, samples, point.active)], samples).mean()
        )
        assert abs(plain - expected) > 0.002
    assert evaluate(point, held_out).taken == pytest.approx(expected, abs=1e-5)
    assert any("at the fitted temperatures" in note for note in point.notes)
    assert not any("temperatures" in note for note in calibrate(records, **wanted).notes)


def distance_by_hand(kind: str, said: Tensor, full: Tensor, labels: Tensor) -> float:
    if kind == "hellinger":
        return float((1 - (said * full).sqrt().sum(-1)).mean())
    truth = labels if kind == "brier_gap" else full.argmax(-1)
    target = torch.nn.functional.one_hot(truth, 5)
    return float(((said - target) ** 2).sum(-1).mean() - ((full - target) ** 2).sum(-1).mean())


def test_a_tighter_promise_is_never_cheaper() -> None:
    records = made_records(4000, 5, 6)
    costs = [calibrate(records, risk=risk, path="shared").cost for risk in (0.01, 0.03, 0.1)]
    assert costs == sorted(costs, reverse=True)
    sure = [calibrate(records, risk=0.05, delta=d, path="shared").cost for d in (0.001, 0.1, 0.5)]
    assert sure == sorted(sure, reverse=True)


def test_promises_are_kept_on_other_draws() -> None:
    """The point of it all, on records: broken in at most δ of the draws."""
    broken = {"ltt": 0, "naive": 0}
    truth = made_records(20_000, 4, 5, seed=99)
    for seed in range(40):
        records = made_records(900, 4, 5, seed=seed)
        for method in broken:
            point = calibrate(records, risk=0.05, method=method, path="shared")
            broken[method] += risk_of(point, truth) > 0.05
    assert broken["ltt"] <= 8  # 10 % of 40, and three standard deviations
    assert broken["naive"] > broken["ltt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"risk": 0.01},
            "cannot be proved on 130 samples: even if none of them loses anything, 230",
        ),
        ({"risk": 1.0}, "risk = 1, but a consistency risk must be between 0 and 1"),
        ({"risk": -0.1}, "between 0 and 1"),
        ({"risk": float("nan")}, "between 0 and 1"),
        ({"risk": 2.5, "risk_kind": "brier_gap"}, "between 0 and 2"),
        ({"risk": 0.1, "delta": 1.0}, "delta = 1"),
        ({"risk": 0.1, "delta": 0.1, "method": "crc"}, "method 'crc' takes no delta"),
        ({"risk": 0.1, "risk_kind": "consistancy"}, "did you mean 'consistency'"),
        ({"risk": 0.1, "method": "lt"}, "did you mean 'ltt'"),
        ({"risk": 0.1, "path": "sharde"}, "did you mean 'shared'"),
        ({"risk": 0.1, "risk_kind": "deviation"}, "needs a tolerance above 0"),
        ({"risk": 0.1, "risk_kind": "deviation", "tolerance": 1.0}, "is for regression"),
        ({"risk": 0.1, "tolerance": 1.0}, "takes no tolerance"),
        ({"risk": 0.1, "policy": "voting", "risk_kind": "hellinger"}, "something of its own"),
        ({"risk": 0.1, "max_drop": 1.0}, "max_drop and risk given"),
        ({"risk": 0.1, "quantile": "p95"}, "quantile goes with max_latency_ms, not with risk"),
        ({"max_drop": 1.0, "delta": 0.1}, "delta goes with risk, not with max_drop"),
        ({"max_cost": 0.5, "certainty": 0.9}, "certainty goes with max_drop"),
        ({"max_drop": 1.0, "search": "dynamik"}, "did you mean 'dynamic'"),
        ({"max_drop": 1.0, "search": "dynamic", "policy": "voting"}, "one threshold per exit"),
    ],
)
def test_refusals(options: dict[str, object], said: str) -> None:
    records = made_records(200, 4, 5)
    with pytest.raises(OfframpError, match=said):
        calibrate(records, **options)
