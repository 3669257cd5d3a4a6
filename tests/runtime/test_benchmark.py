"""The benchmark: what it reports belongs together; how fast this machine is does not matter."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.calibration import OperatingPoint, Records, calibrate, records_meta
from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime.batching import BatchPlan
from offramp.runtime.benchmark import BenchResult, bench
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines.torch_engine import TorchEngine
from offramp.runtime.latency import latency_table
from offramp.runtime.latency_verdict import judge_latency
from offramp.runtime.prediction import Prediction
from offramp.runtime.runner import Runner


def test_bench_reports_the_three_speedups_side_by_side(
    model: MultiExitModel, policy: Confidence, images: Tensor
) -> None:
    result = bench(model, None, images, (1, 16), policy=policy, active=[0, 2], rounds=3)
    costs = model_costs(model)
    for row, count in zip(result.batches, (40, 32), strict=True):
        said = compile_runner(model, policy=policy, active=[0, 2], costs=costs)(images[:count])
        assert row.images == count
        share = said.exit.bincount(minlength=4) / count
        assert row.exit_share == pytest.approx(share.tolist())
        assert row.speedup_layers == pytest.approx(4 / said.blocks.double().mean().item())
        assert row.speedup_macs == pytest.approx(costs.speedup(share.tolist(), [0, 2]))
        assert row.speedup_time == pytest.approx(1 / row.ratio)
        assert row.efficiency == pytest.approx(row.speedup_time / row.speedup_macs)
        assert row.ratio_quartiles[0] <= row.ratio <= row.ratio_quartiles[1]
        assert min(row.full_ms, row.dynamic_ms, row.no_exit_overhead) > 0
    assert result.active == [0, 2]
    assert result.exit_names == model.exit_names
    assert result.fingerprint == model.fingerprint()
    assert BenchResult.model_validate(json.loads(result.model_dump_json())) == result


def test_a_promised_latency_is_judged_by_the_clock(model: MultiExitModel, images: Tensor) -> None:
    point = _promising(model, images, max_latency_ms=1e6, quantile="p50")
    result = bench(model, point, images[:8], (1, 4), rounds=2)
    row, verdict = result.batches[0], result.verdict
    assert verdict is not None
    assert row.dynamic_p50_ms is not None
    assert (verdict.kept, verdict.taken_ms) == (True, row.dynamic_p50_ms)
    assert verdict.sentence == (
        f"promise kept: {point.promise}; measured p50 {row.dynamic_p50_ms:.3f} ms, p95 "
        f"{row.dynamic_p95_ms:.3f} ms, 8 images one by one in 2 rounds"
    )
    assert BenchResult.model_validate(json.loads(result.model_dump_json())) == result
    for rule, taken in (("p50", 3.0), ("p95", 9.0)):
        promise = point.promise.model_copy(update={"quantile": rule, "value": taken})
        for value, kept in ((taken, True), (taken - 0.001, False)):
            tighter = promise.model_copy(update={"value": value})
            found = judge_latency(tighter, {"p50": 3.0, "p95": 9.0})
            assert found is not None
            assert (found.kept, found.taken_ms) == (kept, taken)
            assert ("NOT kept" in found.sentence) is not kept
    other = bench(model, point, images[:8], (4,), rounds=1).verdict
    assert other is not None
    assert other.kept is None
    assert "batch size 1 was not timed" in other.sentence


def test_other_promises_are_not_judged_by_the_clock(model: MultiExitModel, images: Tensor) -> None:
    point = _promising(model, images, max_cost=10.0)
    assert bench(model, point, images[:2], (1,), rounds=1).verdict is None


def _promising(model: MultiExitModel, images: Tensor, **promise: Any) -> OperatingPoint:
    with torch.no_grad():
        logits = torch.stack([said.logits for said in model(images)], dim=1)
    meta = records_meta(model, dataset="images", split="calibration")
    records = Records.from_logits(logits, logits[:, -1].argmax(-1), meta=meta)
    table = latency_table(model, images[:2], (1,), repeats=1, warmup=0)[1]
    return calibrate(records, time=table, **promise)


def test_one_round_is_enough_for_a_number(model: MultiExitModel, images: Tensor) -> None:
    never = Confidence.shared(Confidence.never, 4)
    (row,) = bench(model, None, images[:2], (2,), policy=never, rounds=1).batches
    assert row.ratio_quartiles == (row.ratio, row.ratio)
    assert row.speedup_layers == 1


def test_the_model_keeps_its_mode(model: MultiExitModel, images: Tensor) -> None:
    model.train()
    bench(model, None, images[:1], (1,), active=(), rounds=1)
    assert model.training
    model.eval()


def test_more_images_are_needed_than_a_batch_holds(model: MultiExitModel, images: Tensor) -> None:
    with pytest.raises(OfframpError, match="batch size 64, but 40 images"):
        bench(model, None, images, (64,), active=(), rounds=1)


def test_where_shapes_are_fixed_a_measured_plan_decides(
    model: MultiExitModel, policy: Confidence, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[BatchPlan | None] = []
    told: list[str] = []
    whole = TorchEngine.prepare
    monkeypatch.setattr(Runner, "stream", _noting_the_plan(plans, Runner.stream))
    bench(model, None, images[:8], (4,), policy=policy, rounds=1, advance=told.append)
    assert plans == [None, None]  # any size runs as it is
    assert told == ["timing batch 4"]
    plans.clear()
    monkeypatch.setattr(
        TorchEngine,
        "prepare",
        lambda self, parts: whole(self, parts)._replace(sizes=(1, 2, 4, 8)),
    )
    bench(model, None, images[:8], (4,), policy=policy, rounds=1, advance=told.append)
    assert all(plan is not None and plan.times.fixed for plan in plans)
    assert [sorted(plan.times.segments[0].ms) for plan in plans if plan] == [[1, 2, 4]] * 2
    assert told[1:] == ["timing batch sizes for a plan", "timing batch 4"]


def _noting_the_plan(
    plans: list[BatchPlan | None], stream: Callable[..., Iterator[Prediction]]
) -> Callable[..., Iterator[Prediction]]:
    def noting(self: Runner, *arguments: Any, **options: Any) -> Iterator[Prediction]:
        plans.append(self.plan)
        return stream(self, *arguments, **options)

    return noting


def test_an_empty_set_is_refused(model: MultiExitModel) -> None:
    with pytest.raises(OfframpError, match="0 images"):
        bench(model, None, torch.zeros(0, 3, 32, 32), (1,), active=(), rounds=1)
