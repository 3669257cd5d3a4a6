"""Operating points: files, validity, and the promise on held-out samples."""

import json
from pathlib import Path

import pytest
import torch
from made_records import made_records

from offramp.calibration import OperatingPoint, calibrate, evaluate, paired_interval, replay
from offramp.errors import OfframpError


def made_point(**options: object) -> OperatingPoint:
    return calibrate(made_records(800, 4, 5), **{"max_drop": 1.0} | options)


def test_file_round_trip(tmp_path: Path) -> None:
    for policy in ("confidence", "entropy", "patience"):
        point = made_point(policy=policy)
        point.save(tmp_path / "point.json")
        again = OperatingPoint.load(tmp_path / "point.json")
        assert again == point
        assert again.policy_object() == point.policy_object()
        json.loads((tmp_path / "point.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promise": {"kind": "fast", "value": 1, "unit": "x"}}, r"point\.json: promise\.kind"),
        ({"unknown": 1}, r"point\.json: unknown"),
        ({"fingerprint": 5}, r"point\.json: fingerprint"),
        ({"policy": {"name": "confidence", "thresholds": [0.5]}}, "1 thresholds"),
        ({"policy": {"name": "nothing"}}, r"point\.json: unknown policy 'nothing'"),
    ],
)
def test_broken_files_name_file_and_key(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "point.json"
    made_point().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(OfframpError, match=message):
        OperatingPoint.load(path)


def test_check_refuses_another_model_engine_or_precision() -> None:
    point = made_point()
    same = point.fingerprint
    assert point.check(same, "torch", "float32") == []
    with pytest.raises(OfframpError, match="belongs to model 0123456789abcdef, not to fedcba"):
        point.check("fedcba")
    with pytest.raises(OfframpError, match="engine 'torch', not 'openvino'"):
        point.check(same, "openvino")
    with pytest.raises(OfframpError, match="bfloat16"):
        point.check(same, "torch", "bfloat16")
    older = point.model_copy(update={"versions": {"torch": "2.5.0"}})
    assert "torch is 2.13.0" in older.check(same, versions={"torch": "2.13.0", "timm": "1"})[0]


def test_probes_are_the_policys_readings() -> None:
    records = made_records(800, 4, 5)
    point = calibrate(records, max_drop=1.0)
    assert len(point.probes.ids) == 256
    stored = torch.tensor(point.probes.scores)
    assert torch.allclose(stored, records.confidence[point.probes.ids], atol=1e-6)


def test_evaluation_is_replay_on_new_samples() -> None:
    point = made_point()
    held_out = made_records(900, 4, 5, seed=7, split="test")
    found = evaluate(point, held_out)
    decisions = replay(point.policy_object(), held_out, point.active)
    right = decisions.prediction == held_out.labels
    assert found.accuracy == pytest.approx(100 * right.double().mean().item())
    assert found.full_accuracy == pytest.approx(100 * held_out.accuracy[-1])
    assert found.drop == pytest.approx(found.full_accuracy - found.accuracy)
    assert found.drop_interval[0] < found.drop < found.drop_interval[1]
    assert found.kept == (found.drop <= 1.0 + 1e-9)
    assert ("NOT kept" in found.verdict) != found.kept
    assert found.n == 900
    assert sum(found.exit_share) == pytest.approx(1.0)
    for k, accuracy in enumerate(found.leaver_accuracy):
        leavers = right[decisions.exit == k]
        if accuracy is None:
            assert not len(leavers)
        else:
            assert accuracy == pytest.approx(100 * leavers.double().mean().item())


def test_evaluation_of_a_budget() -> None:
    point = made_point(max_drop=None, max_cost=0.6)
    found = evaluate(point, made_records(900, 4, 5, seed=7, split="test"))
    assert found.kept == (found.cost_share <= 0.6)
    assert "0.6 of the full model's MACs" in found.verdict


def test_evaluation_refuses_the_calibration_records_and_other_models() -> None:
    records = made_records(200, 4, 5)
    point = calibrate(records, max_drop=1.0)
    with pytest.raises(OfframpError, match="these very records"):
        evaluate(point, records)
    with pytest.raises(OfframpError, match="belongs to model"):
        evaluate(point, made_records(200, 4, 5, seed=1, fingerprint="other"))


def test_paired_interval() -> None:
    low, high = paired_interval(0.0, 0.0, 1000)
    assert -0.004 < low < 0 < high < 0.004
    low, high = paired_interval(0.02, 0.1, 1000)  # 60 lost, 40 gained
    centre, error = 20 / 1002, (101 - 400 / 1002) ** 0.5 / 1002
    assert (low, high) == pytest.approx((centre - 1.959964 * error, centre + 1.959964 * error))


def test_paired_interval_covers_the_true_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(
        torch.tensor([0.06, 0.04, 0.9]), 400 * 500, replacement=True, generator=generator
    ).reshape(400, 500)
    covered = 0
    for draw in draws:
        lost, gained = (draw == 0).sum().item() / 500, (draw == 1).sum().item() / 500
        low, high = paired_interval(lost - gained, lost + gained, 500)
        covered += low <= 0.02 <= high
    assert 0.92 <= covered / 400 <= 0.98
