"""Time next to the unmodified model: same run, same engine, same images, in turn."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median, quantiles
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
from offramp.runtime.batching import BatchPlan
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines.engine import EngineOptions
from offramp.runtime.hosting import hosting
from offramp.runtime.latency import per_segment
from offramp.runtime.latency_verdict import LatencyVerdict, judge_latency
from offramp.runtime.prediction import Prediction, join
from offramp.runtime.runner import Runner
from offramp.runtime.static import static_program

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.model import MultiExitModel

P95 = 0.95


class StaticBench(BaseModel):
    """Another, plain model timed in the same rounds; milliseconds are per image."""

    model_config = ConfigDict(extra="forbid")

    ms: float
    ratio: float = Field(description="over the unmodified backbone, median of the rounds' ratios")


class BatchBench(BaseModel):
    """What was measured at one batch size; milliseconds are per image."""

    model_config = ConfigDict(extra="forbid")

    batch_size: int
    images: int = Field(description="different images per round; each goes through all contenders")
    rounds: int
    full_ms: float = Field(description="unmodified backbone, median over rounds")
    full_p95_ms: float = Field(description="95th percentile over single batches")
    dynamic_ms: float = Field(description="runner at the operating point, median over rounds")
    dynamic_p50_ms: float | None = Field(default=None, description="median over single batches")
    dynamic_p95_ms: float = Field(description="95th percentile over single batches")
    ratio: float = Field(description="dynamic over full time, median of the rounds' ratios")
    ratio_quartiles: tuple[float, float] = Field(description="of the rounds' ratios")
    speedup_time: float = Field(description="1 / ratio")
    speedup_layers: float = Field(description="blocks of the model / mean blocks run, same images")
    speedup_macs: float = Field(description="full MACs / mean MACs with heads, same images")
    efficiency: float = Field(description="speedup_time / speedup_macs")
    segment_ms: list[float] = Field(
        description="per compiled segment, head included, when the whole batch runs through it"
    )
    ideal_ms: float = Field(description="sum over segments of active share × segment_ms")
    speedup_ideal: float = Field(description="full_ms / ideal_ms")
    realised: float = Field(description="ideal over dynamic time, median of the rounds")
    stream_ms: float = Field(
        description="the same batches through `Runner.stream`, survivors regrouped to full batches"
    )
    speedup_stream: float = Field(description="full over stream time, median of the rounds")
    no_exit_overhead: float = Field(
        description="runner without early exits over the backbone, median of the rounds' ratios"
    )
    exit_share: list[float] = Field(description="share of the images leaving at each exit")
    statics: dict[str, StaticBench] = Field(default={}, description="plain models in the same run")


class BenchResult(BaseModel):
    """A benchmark with everything needed to judge it."""

    model_config = ConfigDict(extra="forbid")

    engine: str
    precision: str
    point: str | None = Field(default=None, description="name of the operating point")
    metric: str = Field(default="accuracy", description="what accuracies are: percent, or MAE")
    accuracy: float | None = Field(default=None, description="of the point")
    full_accuracy: float | None = Field(default=None, description="of the full model")
    accuracy_on: str | None = Field(default=None, description="what the accuracies are of")
    fingerprint: str
    exit_names: list[str]
    active: list[int]
    memory_mib: float | None = Field(default=None, description="peak of a process with the runner")
    full_memory_mib: float | None = Field(
        default=None, description="peak of one with the unmodified model"
    )
    verdict: LatencyVerdict | None = Field(default=None, description="on a promised latency")
    environment: dict[str, Any]
    batches: list[BatchBench]


class Contenders:
    """Everything that takes turns in a round, compiled once for all batch sizes."""

    def __init__(
        self,
        model: "MultiExitModel",
        runner: Runner,
        engine: str,
        options: EngineOptions,
        statics: Mapping[str, Callable[[Tensor], Any]],
    ) -> None:
        self.runner = runner
        self.table: CostTable | None = None
        self.statics = statics
        whole = model.chain.baseline
        self.full: Callable[[Tensor], Any] = (
            whole  # eager torch: the very module people brought
            if engine == "torch" and options.precision is None
            else static_program(whole, model.chain.image_size, engine, options=options)
        )
        self.unbranched = compile_runner(model, active=(), engine=engine, options=options)


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
    engine: str | None = None,
    options: EngineOptions | None = None,
    costs: CostTable | None = None,
    statics: Mapping[str, Callable[[Tensor], Any]] | None = None,
    advance: Callable[[str], None] = lambda stage: None,
) -> BenchResult:
    """Time a model at an operating point against its unmodified backbone on the same engine.

    One round sends every image, in batches, through the backbone, the runner, and a runner
    without early exits; the three take turns, in changing order. The ratio of a round is total
    time over total time, so that easy and hard images count as often as they come; reported is the
    median over rounds. An engine that has shapes for some batch sizes only follows a batch plan
    measured on these images first. After each round the same batches go through the runner's
    throughput mode and, whole, through every segment, which gives the ideal time. Where the point
    promises a latency, the times of single images say whether it was kept.

    Args:
        images: preprocessed real images (N, 3, H, W); several hundred for an honest batch 1.
        batch_sizes: the last, smaller batch is left out.
        rounds: measured rounds, after ``warmup`` others.
        policy, active: instead of a point, as for `compile_runner`.
        engine, options: what runs them; the point's own engine and precision when omitted.
        costs: MACs of the model, counted when omitted.
        statics: other plain models on the same engine, by name; they get the same images resized.
        advance: called with a line about what is being timed.

    Raises:
        OfframpError: when there are fewer images than a batch holds, and as `compile_runner`.
    """
    table = costs or model_costs(model)
    engine = engine or (point.engine if point is not None else "torch")
    options = options or EngineOptions(precision=_precision(model, point))
    runner = compile_runner(
        model, point, policy=policy, active=active, engine=engine, options=options, costs=table
    )
    contenders = Contenders(model, runner, engine, options, statics or {})
    images = images.to(device=runner.device, dtype=runner.dtype)
    if sizes := [size for size in runner.program.sizes if size <= max(batch_sizes)]:
        advance("timing batch sizes for a plan")
        runner.plan = BatchPlan(runner.measure(images, sizes))
    batches = []
    with evaluating(model), torch.inference_mode():
        for size in batch_sizes:
            advance(f"timing batch {size}")
            batches.append(_bench_size(model, contenders, table, images, size, rounds, warmup))
    return BenchResult(
        engine=engine,
        precision=runner.precision,
        fingerprint=model.fingerprint(),
        exit_names=model.exit_names,
        active=list(runner.active),
        verdict=None if point is None else _verdict(point, batches),
        environment=describe_environment(),
        batches=batches,
    )


def _verdict(point: "OperatingPoint", batches: Sequence[BatchBench]) -> LatencyVerdict | None:
    for row in batches:
        if row.batch_size == 1 and row.dynamic_p50_ms is not None:
            times = {"p50": row.dynamic_p50_ms, "p95": row.dynamic_p95_ms}
            how = f"{row.images} images one by one in {row.rounds} rounds"
            return judge_latency(point.promise, times, how=how)
    return judge_latency(point.promise, None)


def _precision(model: "MultiExitModel", point: "OperatingPoint | None") -> str | None:
    """The point's precision, unless that is torch as the model is."""
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    if point is None or (point.engine == "torch" and point.precision == own):
        return None
    return point.precision


def _bench_size(
    model: "MultiExitModel",
    contenders: Contenders,
    table: CostTable,
    images: Tensor,
    size: int,
    rounds: int,
    warmup: int,
) -> BatchBench:
    if not 1 <= size <= len(images):
        raise OfframpError(f"batch size {size}, but {len(images)} images were given (use 1…N)")
    groups = [group for group in images.split(size) if len(group) == size]
    runner, names = contenders.runner, list(contenders.statics)
    calls: tuple[Callable[[Tensor], Any], ...] = (
        contenders.full,
        runner,
        contenders.unbranched,
        *contenders.statics.values(),
    )
    predictions = [runner(group) for group in groups]
    said = join(predictions)
    reach = [float((said.exit >= k).double().mean()) for k in runner.executed.exits]
    times, streamed, pieces = [], [], []  # (round, batch, contender), (round,), (round, segment)
    for turn in range(warmup + rounds):
        times.append(_round(calls, groups, turn))
        streamed.append(timed(_stream, runner, groups, size, device=images.device)[0])
        pieces.append(_segments(runner, groups))
    times, streamed, pieces = times[warmup:], streamed[warmup:], pieces[warmup:]
    totals = [[sum(column) for column in zip(*batch, strict=True)] for batch in times]
    count = size * len(groups)
    ratios = [total[1] / total[0] for total in totals]
    ratio = median(ratios)
    macs = table.full / _mean_macs(said)
    ideals = [sum(r * ms for r, ms in zip(reach, piece, strict=True)) for piece in pieces]
    full_ms = median(total[0] for total in totals) / count
    return BatchBench(
        batch_size=size,
        images=count,
        rounds=rounds,
        full_ms=full_ms,
        full_p95_ms=_p95(batch[0] / size for turn in times for batch in turn),
        dynamic_ms=median(total[1] for total in totals) / count,
        dynamic_p50_ms=median(batch[1] / size for turn in times for batch in turn),
        dynamic_p95_ms=_p95(batch[1] / size for turn in times for batch in turn),
        ratio=ratio,
        ratio_quartiles=_quartiles(ratios),
        speedup_time=1 / ratio,
        speedup_layers=model.chain.full_blocks / float(said.blocks.double().mean()),
        speedup_macs=macs,
        efficiency=1 / ratio / macs,
        segment_ms=[median(column) for column in zip(*pieces, strict=True)],
        ideal_ms=median(ideals),
        speedup_ideal=full_ms / median(ideals),
        realised=median(
            ideal * count / total[1] for ideal, total in zip(ideals, totals, strict=True)
        ),
        stream_ms=median(streamed) / count,
        speedup_stream=median(
            total[0] / took for total, took in zip(totals, streamed, strict=True)
        ),
        no_exit_overhead=median(total[2] / total[0] for total in totals),
        exit_share=(said.exit.bincount(minlength=model.num_exits) / len(said)).tolist(),
        statics={
            name: StaticBench(
                ms=median(total[3 + i] for total in totals) / count,
                ratio=median(total[3 + i] / total[0] for total in totals),
            )
            for i, name in enumerate(names)
        },
    )


def _stream(runner: Runner, groups: Sequence[Tensor], size: int) -> None:
    for _ in runner.stream(groups, batch_size=size):
        pass


def _segments(runner: Runner, groups: Sequence[Tensor]) -> list[float]:
    """Milliseconds per image of every segment when everybody goes through all of them."""
    with hosting(runner.program):
        runs = (groups[0], *groups)  # the first is not measured: see `_round`
        took = [per_segment(runner.program, (g, *runner.memory(len(g)))) for g in runs][1:]
    return [mean(column) for column in zip(*took, strict=True)]


def _round(
    contenders: Sequence[Callable[[Tensor], Any]], groups: Sequence[Tensor], turn: int
) -> list[list[float]]:
    """Milliseconds of every contender on every batch, as (batch, contender).

    Contenders take turns, and who comes first changes from round to round. A turn is one
    unmeasured batch, which brings back the caches that others have used, then every batch.
    """
    count = len(contenders)
    times = [[0.0] * count for _ in groups]
    for who in [(turn + i) % count for i in range(count)]:
        contenders[who](groups[0])
        for number, group in enumerate(groups):
            times[number][who], _ = timed(contenders[who], group, device=group.device)
    return times


def _mean_macs(said: Prediction) -> float:
    assert said.cost is not None
    return float(said.cost.mean())


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _p95(values: Any) -> float:
    return float(torch.quantile(torch.tensor(list(values), dtype=torch.float64), P95))
