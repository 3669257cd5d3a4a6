"""Records, points and evaluations of numbers: MAE and RMSE in the unit of the targets."""

import math
from pathlib import Path

import pytest
import torch
from made_records import made_meta
from torch import Tensor

import offramp
from offramp.calibration import OperatingPoint, Records, calibrate, evaluate, fit_temperatures
from offramp.calibration.targets import drop_error
from offramp.calibration.wholes import Wholes
from offramp.errors import OfframpError
from offramp.tasks import Regression, Target, figure_name, task_named

EXITS = 5


def made_numbers(count: int = 600, seed: int = 0, split: str = "calibration") -> Records:
    """Exits whose noise shrinks with depth, faster on easy samples, and that know how sure."""
    generator = torch.Generator().manual_seed(seed)
    labels = 20 * torch.rand(count, generator=generator)
    hard = torch.rand(count, generator=generator)
    said = torch.empty(count, EXITS, 1)
    shared = torch.randn(count, generator=generator)
    for k in range(EXITS):
        own = torch.randn(count, generator=generator)
        said[:, k, 0] = labels + 0.5 * shared + 8 * hard * own * 0.45**k
    sure = 1 - hard[:, None].expand(-1, EXITS)
    meta = made_meta(EXITS, task="regression", split=split)
    return Records.from_logits(said, labels, meta=meta, signals={"certainty": sure.contiguous()})


def errors(records: Records) -> Tensor:
    return (records.logits[..., 0] - records.labels[:, None]).double()


def test_figures_are_what_their_names_say() -> None:
    records = made_numbers()
    found, error = records.figures, errors(records)
    for k in range(EXITS):
        assert found[k] == pytest.approx(
            {
                "mae": error[:, k].abs().mean().item(),
                "rmse": error[:, k].pow(2).mean().sqrt().item(),
            }
        )
    assert records.accuracy == pytest.approx([-row["mae"] for row in found])
    assert torch.equal(records.worth_of(records.prediction[:, 2]), records.worth[:, 2])
    assert [figure_name(key) for key in ("mae", "rmse", "photo_mae", "accuracy")] == [
        "MAE",
        "RMSE",
        "MAE per photo",
        "accuracy",
    ]


def test_labels_stay_numbers_and_survive_the_disk(tmp_path: Path) -> None:
    records = made_numbers(40)
    assert records.labels.dtype == torch.float32
    assert "learned" in records.scalars
    assert "confidence" not in records.scalars
    records.save(tmp_path / "records.safetensors")
    again = Records.load(tmp_path / "records.safetensors")
    assert again.digest == records.digest
    assert torch.equal(again.worth, records.worth)
    with pytest.raises(OfframpError, match="records of a regression model hold no correct"):
        _ = again.correct


@pytest.mark.parametrize("policy", ["settled", "learned"])
def test_a_promised_mae_is_kept_where_it_was_made(policy: str, tmp_path: Path) -> None:
    records = made_numbers()
    point = calibrate(records, policy=policy, max_drop=0.3, smooth=False)
    mae = records.figures[-1]["mae"]
    assert point.task == "regression"
    assert str(point.promise) == (
        "MAE at most 0.3 above the full model's (estimated on "
        f"{point.n:,} samples of the calibration split, not proved)"
    )
    assert point.full_accuracy == pytest.approx(mae)
    assert point.accuracy == pytest.approx(mae + point.drop)
    assert point.drop <= 0.3
    assert point.cost_share < 0.9
    assert [f.accuracy for f in point.front] == sorted(
        (f.accuracy for f in point.front), reverse=True
    )
    point.save(tmp_path / "point.json")
    assert OperatingPoint.load(tmp_path / "point.json") == point
    found = evaluate(point, made_numbers(seed=1, split="test"))
    assert set(found.figures) == {"mae", "rmse"}
    assert found.figures["mae"] == pytest.approx(found.accuracy)
    assert found.drop == pytest.approx(found.figures["mae"] - found.full_figures["mae"])
    assert found.drop_interval[0] < found.drop < found.drop_interval[1]
    assert found.kept == (found.drop <= 0.3)
    assert "of MAE (95 % interval" in found.verdict


def test_a_larger_allowance_never_costs_more() -> None:
    records = made_numbers()
    shares = [
        calibrate(records, policy="settled", max_drop=value).cost_share
        for value in (0.0, 0.1, 0.5, 2.0)
    ]
    assert shares == sorted(shares, reverse=True)
    cheap = calibrate(records, policy="settled", max_cost=0.6)
    assert cheap.cost_share <= 0.6
    with pytest.raises(OfframpError, match="no point loses at most -50 MAE"):
        calibrate(records, policy="settled", max_drop=-50.0)


def test_threshold_search_does_not_depend_on_the_unit_of_the_targets() -> None:
    records, scale = made_numbers(), 1000.0
    larger = Records.from_logits(
        records.logits * scale,
        records.labels * scale,
        meta=records.meta,
        signals=records.signals,
    )
    one = calibrate(records, policy="learned", max_drop=0.3)
    other = calibrate(larger, policy="learned", max_drop=0.3 * scale)
    assert other.cost_share == pytest.approx(one.cost_share, abs=0.01)
    assert other.drop == pytest.approx(scale * one.drop, abs=0.03 * scale)


def test_interval_is_the_normal_one_of_the_paired_difference() -> None:
    records = made_numbers()
    change = (records.worth[:, -1] - records.worth[:, 1]).double()
    drop, differ = change.mean().item(), change.square().mean().item()
    error = change.std(correction=0).item() / math.sqrt(len(change))
    assert drop_error(drop, differ, len(change)) == pytest.approx(error)
    low, high = Regression().interval(drop, differ, len(change))
    assert (low, high) == pytest.approx((drop - 1.959964 * error, drop + 1.959964 * error))


def test_sums_over_photos_cancel_errors() -> None:
    records = made_numbers(24)
    wholes = Wholes("photo", torch.arange(24) // 12 + 7)
    found = wholes.figures(records, records.prediction[:, 0])
    error = errors(records)[:, 0].reshape(2, 12).sum(dim=1)
    assert found["photo_mae"] == pytest.approx(error.abs().mean().item())
    assert found["photo_rmse"] == pytest.approx(error.pow(2).mean().sqrt().item())


def test_a_softmax_is_asked_for_in_vain() -> None:
    records = made_numbers(30)
    with pytest.raises(OfframpError, match="temperatures scale a softmax, which regression has"):
        fit_temperatures(records)


def test_records_are_in_the_unit_of_the_targets() -> None:
    from offramp.calibration import record
    from offramp.data import batches
    from regression_model import blobs, regression_model

    data = blobs(test=16)
    model = regression_model(mean=10.0, std=4.0)
    records = offramp.collect(model, data, split="test", progress=False)
    stream = batches(data.split("test"), batch_size=16, preprocessing=model.preprocessing)
    with torch.no_grad():
        raw = torch.stack([said.logits for said in model(next(iter(stream)).images)], dim=1)
    torch.testing.assert_close(records.logits, 4 * raw + 10, rtol=1e-4, atol=1e-4)
    stream = batches(data.split("test"), batch_size=16, preprocessing=model.preprocessing)
    plain = record(model, stream, meta=records.meta, count=16)
    torch.testing.assert_close(records.logits, plain.logits, rtol=1e-4, atol=1e-4)
    other = regression_model(mean=10.0, std=5.0)
    assert other.fingerprint() != model.fingerprint()


def test_the_loss_is_l1_in_units_of_the_spread() -> None:
    outputs, targets = torch.tensor([[0.5], [-1.0]]), torch.tensor([12.0, 4.0])
    plain = task_named("regression", Target(mean=10, std=2))
    assert plain.loss(outputs, targets).item() == pytest.approx((0.5 + 2.0) / 2)
    smooth = task_named("regression", Target(mean=10, std=2, smooth=1.0))
    assert smooth.loss(outputs, targets).item() == pytest.approx((0.125 + 1.5) / 2)
    with pytest.raises(OfframpError, match="one number per sample"):
        plain.loss(outputs, torch.tensor([[1.0], [2.0]]))
