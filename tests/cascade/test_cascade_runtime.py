"""Cascades through records, points, engines and bundles, like any other multi-exit model."""

from pathlib import Path

import pytest
import torch
from cascade_pairs import big, pictures, small, spread_policy, vit

import offramp
from offramp.calibration import Records, calibrate, evaluate, records_meta, replay
from offramp.costs import model_costs
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime import EngineOptions, bench, latency_table


@pytest.fixture(scope="module", params=[False, True], ids=["last", "mean"])
def model(request: pytest.FixtureRequest) -> MultiExitModel:
    return offramp.cascade([small(), big()], average=request.param)


def shallow(average: bool) -> MultiExitModel:
    """One block per member, for exporters, which take their time over each."""
    return offramp.cascade([vit(24, 1), vit(24, 1, 48, seed=1, mean=0.3)], average=average)


@torch.inference_mode()
def recorded(model: MultiExitModel, count: int = 40, **meta: str) -> Records:
    logits = torch.stack([said.logits for said in model(pictures(count))], dim=1)
    labels = logits[:, -1].argmax(-1)
    labels[::7] = logits[::7, 1].argmax(-1)
    about = records_meta(
        model, dataset="noise", split="calibration", costs=model_costs(model), **meta
    )
    return Records.from_logits(logits, labels, meta=about)


@torch.inference_mode()
def test_records_replay_as_it_runs(model: MultiExitModel) -> None:
    records, policy = recorded(model), spread_policy(model, pictures(40))
    for active in (None, [1], [0, 2]):
        decided = replay(policy, records, active)
        live = offramp.compile(model, policy=policy, active=active)(pictures(40))
        assert torch.equal(live.exit, decided.exit)
        assert torch.equal(live.labels, decided.prediction)


def test_savings_are_stated_against_the_big_model(model: MultiExitModel) -> None:
    records = recorded(model)
    costs = records.meta.costs
    assert costs is not None
    assert records.meta.baseline_blocks == 3
    assert records.meta.blocks == 5
    never = calibrate(records, max_drop=0.0, costs=costs)
    point = calibrate(records, max_cost=0.9)
    assert point.cost_share <= 0.9
    for found in (never, point):
        share = torch.tensor(found.exit_share)
        ran = share @ torch.tensor([1.0, 2.0, 4.0, 5.0])
        assert found.speedup_layers == pytest.approx(3 / float(ran))
        assert found.speedup_macs == pytest.approx(
            costs.full / costs.mean_cost(found.exit_share, found.active)
        )
    held_out = Records.from_logits(
        records.logits[:30], records.labels[:30], meta=records.meta, ids=records.ids[:30]
    )
    assert evaluate(point, held_out).n == 30


@pytest.mark.parametrize(("engine", "average"), [("onnxruntime", True), ("openvino", False)])
def test_exported_it_answers_like_torch(engine: str, average: bool, tmp_path: Path) -> None:
    model, x = shallow(average), pictures(40)
    policy = spread_policy(model, x)
    point = calibrate(recorded(model, engine=engine), max_drop=90.0)
    point = point.model_copy(update={"policy": policy.to_config(), "active": (0,)})
    manifest = offramp.export_bundle(model, point, tmp_path / "bundle", images=x)
    assert manifest.segments[0].flow == ("pixels", "logits")
    assert manifest.full_macs == model_costs(model).full
    wanted = offramp.compile(model, policy=policy)(x)
    found = offramp.load_bundle(tmp_path / "bundle")(x)
    assert len(wanted.exit.unique()) == 2
    assert torch.equal(found.exit, wanted.exit)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "bundle" / "single.onnx")
        for image, exit in zip(x[:8], wanted.exit[:8], strict=True):
            assert session.run(["exit"], {"images": image[None].numpy()})[0] == exit.item()


def test_openvino_passes_pixels_on_at_bfloat16() -> None:
    model, x = shallow(True), pictures(4)
    runner = offramp.compile(
        model, policy=Confidence.shared(1.0, 2), engine="openvino", precision="bfloat16"
    )
    with torch.inference_mode():
        expected = model(x)[-1].logits
    torch.testing.assert_close(runner(x).logits, expected, rtol=0.1, atol=0.1)


def test_times_hold_all_members_against_the_last_one(model: MultiExitModel) -> None:
    table = latency_table(model, pictures(4), [2], repeats=3, warmup=1)[2]
    assert table.num_exits == 4
    assert min(*table.body, table.full) > 0
    assert sum(table.body) != pytest.approx(table.full, rel=1e-6)  # of all, not of the last
    result = bench(
        model,
        None,
        pictures(8),
        [4],
        rounds=1,
        policy=Confidence.shared(0.0, 4),
        active=[1],
        options=EngineOptions(),
    )
    assert result.batches[0].speedup_layers == pytest.approx(3 / 2)
    assert result.batches[0].speedup_macs == pytest.approx(
        model_costs(model).full / model_costs(model).leave_cost([1])[1]
    )
