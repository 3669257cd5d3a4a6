"""The benchmark: what it reports belongs together; how fast this machine is does not matter."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime.batching import BatchPlan
from offramp.runtime.benchmark import BenchResult, bench
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines.torch_engine import TorchEngine
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
