"""Time next to the unmodified model: same run, same engine, same images, in turn."""

from collections.abc import Callable, Sequence
from itertools import permutations
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from offramp.costs.clock import timed
from offramp.costs.environment import describe_environment
from offramp.costs.evaluating import evaluating
from offramp.costs.macs import model_costs
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies import Policy
from offramp.runtime.prediction import Prediction, join
from offramp.runtime.runner import Runner, compile_runner

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.model import MultiExitModel


class BatchBench(BaseModel):
    """What was measured at one batch size; milliseconds are per image."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int
    images: int = Field(description="different images per round; each goes through all contenders")
    rounds: int
    full_ms: float = Field(description="unmodified backbone, median over rounds")
    dynamic_ms: float = Field(description="runner at the operating point, median over rounds")
    ratio: float = Field(description="dynamic over full time, median of the rounds' ratios")
    ratio_quartiles: tuple[float, float] = Field(description="of the rounds' ratios")
    speedup_time: float = Field(description="1 / ratio")
    speedup_layers: float = Field(description="blocks of the model / mean blocks run, same images")
    speedup_macs: float = Field(description="full MACs / mean MACs with heads, same images")
    efficiency: float = Field(description="speedup_time / speedup_macs")
    stream_ms: float = Field(
        description="the same batches through `Runner.stream`, survivors regrouped to full batches"
    )
    speedup_stream: float = Field(description="full over stream time, median of the rounds")
    no_exit_overhead: float = Field(
        description="runner without early exits over the backbone, median of paired ratios"
    )
    exit_share: list[float] = Field(description="share of the images leaving at each exit")


class BenchResult(BaseModel):
    """A benchmark with everything needed to judge it."""

    model_config = ConfigDict(extra="forbid")

    engine: str
    precision: str
    fingerprint: str
    exit_names: list[str]
    active: list[int]
    environment: dict[str, Any]
    batches: list[BatchBench]


def bench(
    model: "MultiExitModel",
    point: "OperatingPoint | None",
    images: Tensor,
    batch_sizes: Sequence[int] = (1, 8, 64),
    *,
    rounds: int = 7,
    warmup: int = 1,
    policy: Policy | None = None,
    active: Sequence[int] | None = None,
    engine: str = "torch",
    costs: CostTable | None = None,
) -> BenchResult:
    """Time a model at an operating point against its unmodified backbone.

    One round sends every image, in batches, through the backbone, the runner, and a runner
    without early exits; the three take turns batch by batch, in changing order. The ratio of a
    round is total time over total time, so that easy and hard images count as often as they come;
    reported is the median over rounds. After each round the same batches go through the runner's
    throughput mode. The no-exit overhead is the median over single pairs,
    since there every image costs the same.

    Args:
        images: preprocessed real images (N, 3, H, W); several hundred for an honest batch 1.
        batch_sizes: the last, smaller batch is left out.
        rounds: measured rounds, after ``warmup`` others.
        policy, active: instead of a point, as for `compile_runner`.
        costs: MACs of the model, counted when omitted.

    Raises:
        OfframpError: when there are fewer images than a batch holds, and as `compile_runner`.
    """
    table = costs or model_costs(model)
    runner = compile_runner(model, point, policy=policy, active=active, engine=engine, costs=table)
    static = compile_runner(model, active=(), engine=engine)
    images = images.to(device=runner.device, dtype=runner.dtype)
    with evaluating(model), torch.inference_mode():
        batches = [
            _bench_size(model, runner, static, table, images, size, rounds, warmup)
            for size in batch_sizes
        ]
    return BenchResult(
        engine=engine,
        precision=runner.precision,
        fingerprint=model.fingerprint(),
        exit_names=model.exit_names,
        active=list(runner.active),
        environment=describe_environment(),
        batches=batches,
    )


def _bench_size(
    model: "MultiExitModel",
    runner: Runner,
    static: Runner,
    table: CostTable,
    images: Tensor,
    size: int,
    rounds: int,
    warmup: int,
) -> BatchBench:
    if not 1 <= size <= len(images):
        raise OfframpError(f"batch size {size}, but {len(images)} images were given (use 1…N)")
    groups = [group for group in images.split(size) if len(group) == size]
    contenders = (model.backbone, runner, static)
    predictions = [runner(group) for group in groups]
    times, streamed = [], []  # (round, batch, contender) and (round,) in ms
    for turn in range(warmup + rounds):
        times.append(_round(contenders, groups, turn))
        streamed.append(timed(_stream, runner, groups, size, device=images.device)[0])
    times, streamed = times[warmup:], streamed[warmup:]
    totals = [[sum(column) for column in zip(*batch, strict=True)] for batch in times]
    count = size * len(groups)
    ratios = [dynamic / full for full, dynamic, _ in totals]
    ratio = median(ratios)
    said = join(predictions)
    macs = table.full / _mean_macs(said)
    return BatchBench(
        batch_size=size,
        images=count,
        rounds=rounds,
        full_ms=median(full for full, _, _ in totals) / count,
        dynamic_ms=median(dynamic for _, dynamic, _ in totals) / count,
        ratio=ratio,
        ratio_quartiles=_quartiles(ratios),
        speedup_time=1 / ratio,
        speedup_layers=len(model.chain) / float(said.blocks.double().mean()),
        speedup_macs=macs,
        efficiency=1 / ratio / macs,
        stream_ms=median(streamed) / count,
        speedup_stream=median(
            total[0] / took for total, took in zip(totals, streamed, strict=True)
        ),
        no_exit_overhead=median(alone / full for batch in times for full, _, alone in batch),
        exit_share=(said.exit.bincount(minlength=model.num_exits) / len(said)).tolist(),
    )


def _stream(runner: Runner, groups: Sequence[Tensor], size: int) -> None:
    for _ in runner.stream(groups, batch_size=size):
        pass


def _round(
    contenders: Sequence[Callable[[Tensor], Any]], groups: Sequence[Tensor], turn: int
) -> list[list[float]]:
    """Milliseconds of every contender on every batch; who comes first changes each time."""
    orders = list(permutations(range(len(contenders))))
    times = []
    for number, group in enumerate(groups):
        took = [0.0] * len(contenders)
        for who in orders[(number + turn) % len(orders)]:
            took[who], _ = timed(contenders[who], group, device=group.device)
        times.append(took)
    return times


def _mean_macs(said: Prediction) -> float:
    assert said.cost is not None
    return float(said.cost.mean())


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high
