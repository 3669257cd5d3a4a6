"""Comparing runs that answer with numbers: everything in MAE, of which less is better."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from offramp.calibration import Records, RecordsMeta, calibrate, evaluate
from offramp.comparison import Comparison, compare, timing
from offramp.comparison.result import Timed
from offramp.errors import OfframpError
from offramp.files import write_atomic
from offramp.report.comparison import markdown, plot_comparison, table_rows
from offramp.runs import RunFolder, open_data
from offramp.training.run_config import RunConfig

DESCRIPTION: dict[str, Any] = {
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "image_size": 24,
        "backbone_args": {"patch_size": 6, "embed_dim": 24, "depth": 4, "num_heads": 3},
    },
    "exits": {"layout": "linear", "at": [1, 2, 3]},
    "data": {
        "name": "count-blobs",
        "options": {"sizes": {"train": 64, "calibration": 240, "validation": 32, "test": 240}},
    },
}


def make_counter(path: Path, noise: float) -> RunFolder:
    """A run with records of exits that are wrong by ``noise`` blobs, less with depth, and by less
    on some pictures than on others."""
    recipe = {"name": "joint", "joint": {"epochs": round(noise)}}  # another method, no other seed
    config = RunConfig.model_validate(DESCRIPTION | {"name": path.name, "recipe": recipe})
    torch.manual_seed(0)
    config.build(open_data(config)).eval().save_pretrained(path)
    write_atomic(path / "recipe.yaml", yaml.safe_dump(config.dump()))
    run = RunFolder(path)
    model = run.model
    for seed, split in enumerate(("calibration", "test")):
        draw = torch.Generator().manual_seed(seed)
        samples = run.data.split(split)
        error = torch.randn(len(samples), model.num_exits, generator=draw)
        error *= torch.rand(len(samples), 1, generator=draw) * 0.6 ** torch.arange(model.num_exits)
        said = samples.labels[:, None] + noise * error
        meta = RecordsMeta(
            fingerprint=model.fingerprint(),
            dataset=run.data.name,
            split=split,
            task="regression",
            exit_names=model.exit_names,
            positions=list(model.positions),
            blocks=len(model.chain),
            standalone=model.standalone,
        )
        records = Records.from_logits(said[..., None], samples.labels, ids=samples.ids, meta=meta)
        records.save(path / f"records-{split}.safetensors")
    return run


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """A run that counts badly, and one that counts well."""
    runs = tmp_path_factory.mktemp("counters")
    return [make_counter(runs / name, noise) for name, noise in (("bad", 6.0), ("good", 3.0))]


def specs(runs: list[RunFolder]) -> list[str]:
    return [f"{run.path}:settled" for run in runs]


def mae(run: RunFolder, split: str = "test") -> float:
    return run.records(split).figures[-1]["mae"]


def test_figures_are_those_of_calibrate_and_evaluate(counters: list[RunFolder]) -> None:
    run = counters[0]
    found = compare(specs([run]), budgets=[0.8], drops=[0.2], progress=False)
    assert found.task == "regression"
    assert found.reference_accuracy == pytest.approx(mae(run))
    [method] = found.methods
    assert method.full.mean == pytest.approx(mae(run))
    assert [spread.mean for spread in method.exits.values()] == pytest.approx(
        [row["mae"] for row in run.records("test").figures]
    )
    point = calibrate(run.records("calibration"), policy="settled", max_cost=1e9, costs=run.costs)
    known = mae(run, "calibration")

    def told(setting: Any) -> Any:
        return evaluate(point.model_copy(update=setting.model_dump()), run.records("test"))

    affordable = [setting for setting in point.front if setting.cost_share <= 0.8]
    spread = method.at_budget["0.8"]
    assert spread is not None
    assert spread.mean == pytest.approx(told(min(affordable, key=lambda s: s.accuracy)).accuracy)
    near = [setting for setting in point.front if setting.accuracy <= known + 0.2]
    share = method.at_drop["0.2"]
    assert share is not None
    assert share.mean == pytest.approx(told(min(near, key=lambda s: s.cost_share)).cost_share)
    assert method.area is not None
    assert min(y for _, y in method.curve) <= method.area.mean <= max(y for _, y in method.curve)
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_losses_are_shares_of_the_references_error(counters: list[RunFolder]) -> None:
    found = compare(specs(counters), progress=False)
    shares = [drop / mae(counters[0], "calibration") for drop in found.drops]
    assert shares == pytest.approx([0.02, 0.05, 0.1], rel=0.05)
    for method in found.methods:
        costs = [spread.mean if spread else 9.0 for spread in method.at_drop.values()]
        assert costs == sorted(costs, reverse=True), "who may lose more needs no more"


def test_the_smallest_error_comes_first(counters: list[RunFolder]) -> None:
    found = compare(specs(counters), drops=[0.1], progress=False)
    heads, rows = table_rows(found)
    assert [row[0] for row in rows] == ["good", "bad"]
    assert heads[2] == "full"
    assert rows[0][2] == f"{mae(counters[1]):.3f}"
    assert "MACs at +0.1" in heads
    page = markdown(found)
    assert f"refer to bad: MAE {mae(counters[0]):.3f} and" in page
    assert "to lose at most 0.1 MAE against the reference" in page
    assert all(
        "%" not in line for line in page.splitlines() if line.startswith(("| good", "| bad"))
    )


def test_the_plot_says_what_it_shows(counters: list[RunFolder]) -> None:
    found = compare(specs(counters), progress=False)
    made = plot_comparison(found)
    [axis] = made.axes
    assert "MAE (less is better)" in made.get_supylabel()
    low, high = axis.get_ylim()
    for method in found.methods:
        for cost, value in method.curve:
            assert low < value < high or cost < found.lowest


def test_time_is_taken_at_the_middle_loss(
    counters: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def timed(*arguments: Any) -> Timed:
        asked.append(arguments[6])
        return Timed(engine="torch", max_drop=arguments[6], batch_size=1, ms=1.0, speedup=1.0)

    monkeypatch.setattr(timing, "_time", timed)
    found = compare(specs(counters[:1]), progress=False)
    timing.time_methods(found, specs(counters[:1]), engine="torch", progress=False)
    assert asked == pytest.approx([0.05 * mae(counters[0])], rel=0.05)


def test_tasks_are_not_mixed(counters: list[RunFolder], bare_run: RunFolder) -> None:
    with pytest.raises(OfframpError, match=r"bare is a model for classification, .* regression"):
        compare([*specs(counters[:1]), str(bare_run.path)], progress=False)
    with pytest.raises(OfframpError, match=r"policy 'confidence' is for classification"):
        compare([str(counters[0].path)], progress=False)
