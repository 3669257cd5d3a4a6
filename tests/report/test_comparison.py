"""Comparing runs: settings are picked on one split, judged on another, and seeds are averaged."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from report_runs import invented_records, make_run

from offramp.calibration import OperatingPoint, calibrate, evaluate
from offramp.comparison import Comparison, Curve, compare, timing
from offramp.comparison.curve import Spot
from offramp.comparison.result import Spread
from offramp.comparison.siblings import record_runs, trunk
from offramp.comparison.table import contestant
from offramp.costs import CostTable
from offramp.errors import OfframpError
from offramp.files import write_atomic
from offramp.model import MultiExitModel
from offramp.recording import collect
from offramp.report.comparison import (
    FEW,
    markdown,
    plot_comparison,
    save_comparison_plot,
    table_rows,
)
from offramp.runs import RunFolder
from offramp.training.features import Features, FrozenFeatures

CURVE = Curve(
    calibrated=(Spot(0.3, 60.0), Spot(0.5, 80.0), Spot(0.6, 79.0), Spot(1.0, 90.0)),
    held_out=(Spot(0.31, 59.0), Spot(0.52, 78.0), Spot(0.6, 81.0), Spot(1.0, 88.0)),
)


@pytest.fixture
def pair(bare_run: RunFolder, tmp_path: Path) -> list[RunFolder]:
    """Two seeds of one recipe, with records of their own."""
    runs = []
    for seed in (0, 1):
        run = RunFolder(tmp_path / f"seed{seed}")
        shutil.copytree(bare_run.path, run.path)
        recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
        write_atomic(run.path / "recipe.yaml", yaml.safe_dump(recipe | {"seed": seed}))
        for number, split in enumerate(("calibration", "test")):
            records = invented_records(run.model, run.data, split, seed=10 * seed + number)
            records.save(run.path / f"records-{split}.safetensors")
        runs.append(run)
    return runs


def test_a_setting_is_picked_in_calibration_and_judged_elsewhere() -> None:
    assert CURVE.within(0.55) == Spot(0.52, 78.0)
    assert CURVE.within(0.7) == Spot(0.52, 78.0)  # 0.6 looked worse in calibration
    assert CURVE.within(0.2) is None
    assert CURVE.reaching(79.5) == Spot(0.52, 78.0)
    assert CURVE.reaching(95.0) is None


def test_the_area_is_the_mean_over_budgets() -> None:
    assert CURVE.area(0.5, 0.9) == pytest.approx(78.0)
    assert CURVE.area(0.3, 0.5, steps=2) == pytest.approx((59 + 59 + 78) / 3)
    assert CURVE.area(0.2) is None, "a budget that cannot be kept has no accuracy"


def test_spreads() -> None:
    assert str(Spread.of([1.0, 3.0])) == "2.00 ± 1.41"
    assert str(Spread.of([1.0])) == "1.00"
    assert Spread.of([1.0, None]) is None


def test_seeds_are_one_method_and_policies_are_several(pair: list[RunFolder]) -> None:
    paths = [str(run.path) for run in pair]
    found = compare([*paths, f"{paths[0]}:patience"], progress=False)
    assert [(m.policy, m.runs) for m in found.methods] == [
        ("confidence", ["seed0", "seed1"]),
        ("patience", ["seed0"]),
    ]
    method = found.methods[0]
    finals = [100 * run.records("test").accuracy[-1] for run in pair]
    assert method.full.values == pytest.approx(finals)
    assert found.reference_accuracy == pytest.approx(finals[0])
    assert list(method.exits) == pair[0].model.exit_names
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_runs_on_one_frozen_backbone_are_recorded_in_one_pass(
    bare_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their records are those that each would make for itself."""
    assert trunk(bare_run.model) is None, "LGViT's heads read whole maps"
    given = make_run(tmp_path / "given", "linear")
    model, runs = given.model, []
    for number, name in enumerate(("one", "two", "other backbone")):
        changed = model.exits if number == 1 else model.backbone if number == 2 else None
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            for parameter in changed.parameters() if changed is not None else ():
                parameter.add_(0.01)
        shutil.copytree(given.path, tmp_path / name)
        (tmp_path / name / "records-test.safetensors").unlink()
        model.save_pretrained(tmp_path / name)
        model.load_state_dict(before)
        runs.append(RunFolder(tmp_path / name))
    passes: list[int] = []
    compute = FrozenFeatures.compute

    def counted(self: FrozenFeatures, images: torch.Tensor) -> Features:
        passes.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(FrozenFeatures, "compute", counted)
    record_runs([*runs, runs[0]], "test")
    assert sum(passes) == len(runs[0].data.split("test"))
    assert runs[2].known_records("test") is None
    for run in runs[:2]:
        found = run.known_records("test")
        assert found is not None
        own = collect(run.model, run.data, split="test", progress=False)
        torch.testing.assert_close(found.logits, own.logits)
        assert found.ids.equal(own.ids)
        assert found.labels.equal(own.labels)
        assert found.meta == own.meta
    assert not torch.equal(*(run.records("test").logits for run in runs[:2]))


def test_figures_are_those_of_calibrate_and_evaluate(pair: list[RunFolder]) -> None:
    run = pair[0]
    found = compare([str(run.path)], budgets=[0.7], drops=[3.0], progress=False)
    front = calibrate(run.records("calibration"), max_cost=1e9, costs=run.costs)
    affordable = [point for point in front.front if point.cost_share <= 0.7]
    chosen = max(affordable, key=lambda point: point.accuracy)
    expected = evaluate(front.model_copy(update=chosen.model_dump()), run.records("test"))
    spread = found.methods[0].at_budget["0.7"]
    assert spread is not None
    assert spread.mean == pytest.approx(expected.accuracy)
    share = found.methods[0].at_drop["3"]
    assert share is not None
    assert 0 < share.mean < 1


def test_table_and_plot(pair: list[RunFolder], tmp_path: Path) -> None:
    found = compare([str(run.path) for run in pair], progress=False)
    heads, rows = table_rows(found)
    assert all(len(row) == len(heads) for row in rows)
    assert "±" in rows[0][2]
    assert markdown(found).count("\n|") == len(rows) + 2
    assert save_comparison_plot(found, tmp_path / "plot.png").stat().st_size > 10_000


def test_many_methods_stand_out_in_turn(pair: list[RunFolder]) -> None:
    """Few share a panel; of more, every recipe has its own, and the others are there in grey."""
    found = compare([str(pair[0].path), f"{pair[0].path}:entropy"], progress=False)
    one, other = found.methods
    [axis] = plot_comparison(found).axes
    assert labels(axis) == {"tiny, confidence", "tiny, entropy"}
    more = [one.model_copy(update={"name": f"recipe {k}"}) for k in range(FEW)]
    many = found.model_copy(update={"methods": [*more, one, other]})
    axes = plot_comparison(many).axes
    assert {axis.get_title() for axis in axes} == {"tiny", *(m.name for m in more)}
    for axis in axes:
        own = axis.get_title() == "tiny"
        assert labels(axis) == ({"confidence", "entropy"} if own else {"confidence"})
        curves = [line for line in axis.lines if len(line.get_xdata()) > 2]
        assert len(curves) == len(many.methods)


def labels(axis: Any) -> set[str]:
    return {text.get_text() for text in axis.get_legend().get_texts()}


def test_time_is_of_the_setting_that_is_quickest_there(
    pair: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exits whose calls would take longer than they save are off."""
    asked: list[list[int]] = []

    def tables(model: MultiExitModel, images: Any, sizes: list[int], **_: Any) -> dict[int, Any]:
        asked.append(sizes)
        count = model.num_exits
        heads = (0.0,) + (100.0,) * (count - 2) + (0.0,)
        dear = CostTable(unit="ms", body=(1.0,) * count, head=heads, full=count)
        return dict.fromkeys(sizes, dear)

    monkeypatch.setattr(timing, "latency_table", tables)
    paths = [str(run.path) for run in pair]
    found = compare(paths, progress=False)
    timed = timing.time_methods(
        found, paths, engine="torch", images=4, batch_size=2, rounds=1, max_drop=30, progress=False
    )
    [one] = timed.methods[0].timed
    assert (one.engine, one.batch_size, asked) == ("torch:float32", 2, [[1, 2]])
    point = OperatingPoint.load(pair[0].path / "points" / "compared-confidence.json")
    assert point.costs.unit == "ms"
    assert point.active == (0,)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"cache_folder": "here"}, {"cache_folder": "there"}, True),
        ({"finetune": {"epochs": 0, "lr": 0.1}}, {"finetune": {"epochs": 0, "lr": 0.2}}, True),
        ({"finetune": {"epochs": 1, "lr": 0.1}}, {"finetune": {"epochs": 1, "lr": 0.2}}, False),
        ({"heads": {"lr": 0.1}}, {"heads": {"lr": 0.2}}, False),
    ],
    ids=["folder of features", "stage of no epochs", "trained backbone", "trained heads"],
)
def test_only_what_was_trained_tells_methods_apart(
    first: dict[str, Any], second: dict[str, Any], same: bool, pair: list[RunFolder]
) -> None:
    for run, options in zip(pair, (first, second), strict=True):
        recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
        recipe["exits"] = {"layout": "linear"}
        recipe["recipe"] = {"name": "classifier_wise", **options}
        write_atomic(run.path / "recipe.yaml", yaml.safe_dump(recipe))
    one, other = (contestant(str(run.path)).recipe for run in pair)
    assert (one == other) is same


def test_other_samples_are_refused(pair: list[RunFolder]) -> None:
    path = pair[1].path / "records-test.safetensors"
    records = pair[1].records("test")
    short = type(records).from_logits(
        records.logits[:100], records.labels[:100], ids=records.ids[:100], meta=records.meta
    )
    short.save(path)
    with pytest.raises(OfframpError, match="only runs on the same samples"):
        compare([str(run.path) for run in pair], progress=False)


def test_an_unknown_policy_is_named(pair: list[RunFolder]) -> None:
    with pytest.raises(OfframpError, match="patiense"):
        compare([f"{pair[0].path}:patiense"], progress=False)
