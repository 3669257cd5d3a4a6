"""Tokens and exits chosen together: from records of every strength, on one front."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import offramp
from families import enliven
from offramp.calibration import OperatingPoint, evaluate
from offramp.calibration.targets import OutOfReachError
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import write_atomic
from offramp.joint_calibration import calibrate_jointly, worthwhile
from offramp.reduced_run import ReducedRun, point_records, reduced_run, settled
from offramp.reducers import ReducerSpec
from offramp.run_evaluation import evaluate_run
from offramp.runs import RunFolder, calibrate_run, open_data
from offramp.training.run_config import RunConfig

LIMIT = 160
ROUNDED = 1e-6


def tome(r: int) -> ReducerSpec:
    return ReducerSpec(name="tome", options={"r": r})


def evit(keep: float) -> ReducerSpec:
    return ReducerSpec(name="evit", options={"keep": keep})


GRID = [tome(0), tome(2), tome(5)]


def made_run(path: Path, reducer: dict[str, Any] | None = None) -> RunFolder:
    """A run whose weights tell images apart, though nobody trained them."""
    config = RunConfig.model_validate(
        {
            "name": "tokens",
            "model": {
                "backbone": "deit_tiny_patch16_224",
                "image_size": 32,
                "backbone_args": {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3},
                "reducer": reducer,
            },
            "exits": {"layout": "linear", "at": [1, 2, 3]},
            "data": {"name": "digits-grid", "limit": LIMIT},
            "recipe": {"name": "joint"},
        }
    )
    torch.manual_seed(0)
    model = config.build(open_data(config))
    enliven(model)
    model.eval().save_pretrained(path)
    write_atomic(path / "recipe.yaml", yaml.safe_dump(config.dump(), sort_keys=False))
    return RunFolder(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return made_run(tmp_path_factory.mktemp("runs") / "tokens")


def jointly(run: RunFolder, reducers: list[ReducerSpec], **wanted: Any) -> OperatingPoint:
    return calibrate_jointly(run, reducers, progress=False, **wanted)[1]


def alone(run: RunFolder, spec: ReducerSpec, **wanted: Any) -> OperatingPoint:
    return jointly(run, [spec], **wanted, name="alone")


@pytest.mark.parametrize("wanted", [{"max_drop": 3.0}, {"max_drop": 100.0}, {"max_cost": 0.6}])
def test_the_joint_front_is_nowhere_below_a_single_one(
    run: RunFolder, wanted: dict[str, float]
) -> None:
    joint, singles = jointly(run, GRID, **wanted), [alone(run, spec, **wanted) for spec in GRID]
    for single in singles:
        for setting in single.front:
            assert any(
                better.cost_share <= setting.cost_share + ROUNDED
                and better.drop <= setting.drop + ROUNDED
                for better in joint.front
            )
    assert {s.reducer.options["r"] if s.reducer else 0 for s in joint.front} <= {0, 2, 5}
    if "max_drop" in wanted:
        assert joint.cost_share == min(single.cost_share for single in singles)
        assert joint.drop <= wanted["max_drop"] + ROUNDED
    else:
        assert joint.drop == min(single.drop for single in singles)
        assert joint.cost_share <= wanted["max_cost"] + ROUNDED


def test_the_strongest_wins_where_nothing_is_promised(run: RunFolder) -> None:
    point = jointly(run, GRID, max_drop=100.0)
    assert point.reducer == tome(5)
    assert point.fingerprint == reduced_run(run, tome(5)).model.fingerprint()
    assert point.full_model == run.model.fingerprint()


def test_leaving_nothing_out_is_the_untouched_model(run: RunFolder) -> None:
    plain = calibrate_run(run, max_drop=1.0, progress=False, name="plain")[1]
    point = alone(run, tome(0), max_drop=1.0)
    assert point.reducer is None
    assert point == plain.model_copy(update={"wish": point.wish})
    assert settled(run, evit(1.0)) is None
    assert settled(run, evit(0.9)) == evit(0.9)


def test_every_strength_has_records_of_its_own(run: RunFolder) -> None:
    calibrate_jointly(run, GRID, max_drop=2.0, progress=False)
    files = sorted(path.relative_to(run.path) for path in run.path.rglob("records-calib*"))
    assert [str(file.parent) for file in files] == [".", "reducers/tome-r-2", "reducers/tome-r-5"]
    strong, other = ReducedRun(run, tome(5)), ReducedRun(run, tome(2))
    (strong.path / "records-test.safetensors").write_bytes(
        (run.path / "records-calibration.safetensors").read_bytes()
    )
    found = strong.records("test", progress=False)  # a file of another model is not believed
    assert found.meta.fingerprint == strong.model.fingerprint() != other.model.fingerprint()
    assert found.meta.costs is not None
    assert sum(found.meta.costs.body) < sum(run.costs.body)


def test_live_answers_are_the_replayed_ones(run: RunFolder) -> None:
    point = jointly(run, GRID[1:], max_drop=6.0)
    subject = reduced_run(run, point.reducer)
    records = point_records(run, point, "test", progress=False)
    decided = offramp.calibration.replay(point.policy_object(), records, point.active)
    live = offramp.compile(subject.model, point)(subject.images("test", len(records)))
    by_id = dict(zip(records.ids.tolist(), decided.exit.tolist(), strict=True))
    part = run.data.split("test").limited(len(records))
    assert live.exit.tolist() == [by_id[sample] for sample in part.ids.tolist()]


def test_a_loss_is_held_against_the_untouched_model(run: RunFolder) -> None:
    point = jointly(run, [tome(5)], max_drop=100.0)
    records = point_records(run, point, "test", progress=False)
    full = run.records("test", progress=False)
    assert evaluate(point, records).full_accuracy == pytest.approx(100 * full.accuracy[-1])
    own = reduced_run(run, point.reducer).records("test", progress=False)
    with pytest.raises(OfframpError, match="against model"):
        evaluate(point, own)
    with pytest.raises(OfframpError, match="other samples"):
        own.against(run.records("calibration", progress=False))
    assert records.part(torch.arange(5)).full_prediction.tolist() == (
        full.prediction[:5, -1].tolist()
    )


def test_evaluation_takes_every_point_under_its_reducer(run: RunFolder) -> None:
    name, point = calibrate_jointly(run, [tome(2)], max_cost=0.7, progress=False, name="two")
    found = evaluate_run(run, progress=False)["points"][name]
    assert found["full_accuracy"] == pytest.approx(
        100 * run.records("test", progress=False).accuracy[-1]
    )
    assert found["speedup_macs"] == pytest.approx(
        1
        / reduced_run(run, tome(2)).costs.mean_cost(found["exit_share"], point.active)
        * run.costs.full
    )
    assert run.point("two")[1].reducer == tome(2)


def test_time_is_measured_under_every_strength(run: RunFolder) -> None:
    seen = []

    def clock(subject: RunFolder) -> dict[int, CostTable]:
        seen.append(subject.path.name)
        costs = subject.costs
        body = tuple(piece / 1e5 for piece in costs.body)
        made = CostTable(
            unit="ms", body=body, head=costs.head, full=costs.full / 1e5, meta={"batch_size": 1}
        )
        free = made.model_copy(update={"head": (0.0,) * len(body)})
        return {1: free, 4: free.model_copy(update={"meta": {"batch_size": 4}})}

    point = jointly(run, GRID, max_drop=100.0, clock=clock)
    assert seen == ["tokens", "tome-r-2", "tome-r-5"]
    assert point.reducer == tome(5)
    assert point.time is not None
    assert point.asked.flags == (
        """--max-drop 100 --cost time --batch-size 4 --reducer '{"name": "tome"}' --r 0,2,5"""
    )
    limit = 0.9 * run.costs.full / 1e5
    assert jointly(run, GRID, max_latency_ms=limit, clock=clock).promise.kind == "max_latency_ms"


def test_of_several_failures_the_closest_is_told(run: RunFolder) -> None:
    with pytest.raises(OutOfReachError) as failed:
        jointly(run, GRID, max_cost=0.01)
    with pytest.raises(OutOfReachError) as strongest:
        jointly(run, [tome(5)], max_cost=0.01)
    assert str(failed.value) == str(strongest.value)
    assert failed.value.front


@pytest.mark.parametrize(
    ("reducers", "wanted", "said"),
    [
        ([tome(2)], {"risk": 0.1}, "a risk is proved for one model"),
        ([], {"max_drop": 1.0}, "no strength to choose from"),
        ([ReducerSpec(name="tme")], {"max_drop": 1.0}, "unknown reducer 'tme'"),
        ([tome(2).at(keep=0.5)], {"max_drop": 1.0}, "'tome' has no option 'keep'"),
        ([ReducerSpec(name="dynamicvit")], {"max_drop": 1.0}, "weights of its own.*predictors"),
    ],
)
def test_what_cannot_be_chosen_from(
    run: RunFolder, reducers: list[ReducerSpec], wanted: dict[str, float], said: str
) -> None:
    with pytest.raises(OfframpError, match=said):
        jointly(run, reducers, **wanted)


def test_a_trained_reducer_is_taken_at_other_strengths(tmp_path: Path) -> None:
    options = {"keep": 0.7, "blocks": [1, 3]}
    run = made_run(tmp_path, {"name": "dynamicvit", **options})
    given = ReducerSpec(name="dynamicvit", options=options)
    assert settled(run, given) is None
    point = jointly(run, [given, given.at(keep=0.4)], max_drop=100.0)
    assert point.reducer == given.at(keep=0.4)
    weights = reduced_run(run, point.reducer).model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in run.model.state_dict().items())


def test_auto_tries_what_saves_time_and_says_when_nothing_does(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter([0.95, 0.80, 0.795, 0.60])

    def measured(links: Any, specs: list[ReducerSpec], *_: Any, **__: Any) -> list[Any]:
        return [
            offramp.token_steps.Timed(spec, 68 - 5 * n, 1.0, next(ratios, 1.5))
            for n, spec in enumerate(specs)
        ]

    monkeypatch.setattr("offramp.joint_calibration.measure_reducers", measured)
    found, said = worthwhile(run, tome(8), "r", batch_size=4)
    assert [spec.options["r"] for spec in found] == [0, 1, 2, 4]
    assert "torch at batch 4: steps of time are 95 % at r = 1, 80 % at r = 2" in said
    found, said = worthwhile(run, evit(0.7), "keep")
    assert found == [evit(1.0)]
    assert "off: the quickest candidate takes 150 %" in said
    with pytest.raises(OfframpError, match="tome goes by r"):
        worthwhile(run, tome(8), "keep")
    with pytest.raises(OfframpError, match="no single strength"):
        worthwhile(run, ReducerSpec(name="diffrate"), "keep")
