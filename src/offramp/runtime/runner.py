"""offramp.compile: a model and an operating point become something that answers quickly."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offramp.costs.environment import describe_versions
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies import Policy
from offramp.runtime.batching import BatchPlan, BatchTimes
from offramp.runtime.engines import ENGINES, EngineOptions, Program
from offramp.runtime.hosting import hosting
from offramp.runtime.inputs import InputCheck
from offramp.runtime.parts import build_parts
from offramp.runtime.prediction import ExitTables, Prediction
from offramp.runtime.scheduler import Scheduler
from offramp.runtime.stages import Departure, Executed, Flow, Stages
from offramp.runtime.timing import SIZES, measure_program

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.model import MultiExitModel


class Runner:
    """Answers batches; every sample stops on its own, and stopped samples cost nothing more.

    Made by `compile_runner`. Call it for one batch now (latency mode), or `stream` batches
    through it (throughput mode).

    Attributes:
        active: early exits compiled in, by index.
        exit_names: names of all exits of the model.
        executed: per segment, how often and on how many samples it ran.
        engine, precision: what the answers were computed with.
    """

    def __init__(
        self,
        program: Program,
        policy: Policy | None,
        *,
        check: InputCheck,
        num_classes: int,
        tables: ExitTables,
        exit_names: list[str],
        engine: str,
        plan: BatchPlan | None = None,
    ) -> None:
        self.engine, self.precision = engine, program.precision
        self.device, self.dtype = program.device, program.dtype
        self.policy, self.exit_names = policy, exit_names
        self.active = tuple(segment.exit_index for segment in program.segments[:-1])
        self.num_classes, self.tables = num_classes, tables
        self.program, self._check = program, check
        self._stages = Stages(program)
        self._streaming = Stages(program, keep=True)
        self._streaming.executed = self._stages.executed  # one account of what ran
        self.plan = plan

    @property
    def executed(self) -> Executed:
        return self._stages.executed

    @property
    def plan(self) -> BatchPlan | None:
        """Batch sizes to run at and where compaction pays; None: every size as it is, always."""
        return self._stages.plan

    @plan.setter
    def plan(self, plan: BatchPlan | None) -> None:
        if plan is not None:
            _check_plan(plan.times, self)
        self._stages.plan = self._streaming.plan = plan

    def measure(
        self, images: Tensor, sizes: Sequence[int] = SIZES, *, rounds: int = 7
    ) -> BatchTimes:
        """Time the segments at several batch sizes, for a `BatchPlan`.

        Args:
            images: real, preprocessed images (N, 3, H, W).
            sizes: samples per call; larger batches are judged by the largest.
            rounds: measured rounds.
        """
        return measure_program(
            self.program,
            self._check(images),
            sizes,
            engine=self.engine,
            memory=self.memory,
            rounds=rounds,
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images it takes."""
        return (self._check.channels, *self._check.image_size)

    def memory(self, batch: int, ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """The policy's memory of a fresh batch, which the first segment takes behind the images."""
        if self.policy is None:
            return ()
        return self.policy.start(batch, ids=ids, device=self.device)

    def __call__(self, images: Tensor, *, ids: Tensor | None = None) -> Prediction:
        """Answer a batch of any size, also an empty one.

        Args:
            images: preprocessed images (B, 3, H, W).
            ids: sample numbers (B,) int64, for policies that draw at random.

        Raises:
            OfframpError: for a wrong shape or type; for NaN or infinite values, naming samples.
        """
        with hosting(self.program):
            images = self._check(images)
            n = len(images)
            if n == 0:
                return self._empty()
            flow = Flow(None, (images, *self.memory(n, ids)))
            departures: list[Departure] = []
            for stage in range(len(self._stages)):
                rest, departure = self._stages.advance(stage, flow)
                if departure is not None:
                    departures.append(departure)
                if rest is None:
                    break
                flow = rest
            return self._assemble(departures, n)

    def stream(
        self, batches: Iterable[Tensor], *, batch_size: int = 64, max_waiting: int = 8192
    ) -> Iterator[Prediction]:
        """Answer many batches with full segments: one prediction per input batch, in order.

        Survivors of several batches are regrouped into batches of ``batch_size`` before each
        segment, so an answer may wait for later input; at the end everything is flushed.

        Args:
            batches: preprocessed images (B, 3, H, W), each of any size.
            batch_size: samples per segment call; with a plan, the most there may be.
            max_waiting: samples held back before unfinished ones are run in partial batches.
        """
        if batch_size < 1:
            raise OfframpError(f"batch_size = {batch_size}, but it must be at least 1")
        scheduler = Scheduler(
            self._streaming, self._check, self.memory, self.num_classes, batch_size, max_waiting
        )
        for answers in scheduler.stream(batches):
            yield Prediction(answers.logits, answers.exit, self.tables)

    def _assemble(self, departures: list[Departure], n: int) -> Prediction:
        first = departures[0]
        if first.rows is None:  # everybody left together
            exits = torch.full((n,), first.exit_index, device=self.device)
            return Prediction(first.answer, exits, self.tables)
        logits = first.answer.new_empty(n, self.num_classes)
        exits = torch.empty(n, dtype=torch.int64, device=self.device)
        for rows, exit_index, answer in departures:
            assert rows is not None
            logits.index_copy_(0, rows, answer)
            exits.index_fill_(0, rows, exit_index)
        return Prediction(logits, exits, self.tables)

    def _empty(self) -> Prediction:
        logits = torch.empty(0, self.num_classes, dtype=self.dtype, device=self.device)
        exits = torch.empty(0, dtype=torch.int64, device=self.device)
        return Prediction(logits, exits, self.tables)


def compile_runner(
    model: "MultiExitModel",
    point: "OperatingPoint | None" = None,
    *,
    policy: Policy | None = None,
    active: Sequence[int] | None = None,
    engine: str | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    calibration: Tensor | None = None,
    options: EngineOptions | None = None,
    costs: CostTable | None = None,
    plan: BatchPlan | None = None,
) -> Runner:
    """Compile a model for an operating point, or for a policy and the exits it uses.

    Only active exits are compiled in; segments without one are merged into the next. Compile
    again after the model's weights change.

    Args:
        model: the multi-exit model.
        point: from ``offramp.calibrate``; brings its policy and active exits.
        policy: instead of a point. May be left out when no early exit is active.
        active: early exits by index, with ``policy``; all of them when omitted.
        engine: name in the engine registry; the point's own, or ``torch``, when omitted.
        precision: what to compute in; the point's own, or the engine's default, when omitted.
        device: where torch engines run; the model's own when omitted.
        threads: CPU threads of one call; torch's number when omitted.
        batch_size: the largest batch that will come, where an engine gains from knowing it.
        calibration: images (N, 3, H, W) from which int8 ranges are read.
        options: precision, device, threads, batch_size and calibration in one.
        costs: cost table in MACs, for `Prediction.cost`; the point's own when omitted.
        plan: batch sizes to run at and where compaction pays, made from `Runner.measure`; when
            omitted every size runs as it is and stopped samples are always dropped.

    Warns:
        UserWarning: for each library that changed since the point was calibrated.

    Raises:
        OfframpError: for an unknown engine, a point of another model, engine or precision, or a
            policy that does not fit the model.
    """
    if point is not None and (policy is not None or active is not None):
        raise OfframpError("give an operating point, or policy and active, not both")
    if point is not None:
        policy, active, costs = point.policy_object(), point.active, costs or point.macs
        engine, precision = engine or point.engine, precision or point.precision
    engine = engine or "torch"
    options = options or EngineOptions(
        precision=precision,
        device=None if device is None else torch.device(device),
        threads=threads,
        batch_size=batch_size,
        calibration=calibration,
    )
    build = ENGINES.get(engine)(options)
    chosen = sorted(set(range(len(model.exits)) if active is None else active))
    if policy is None and chosen:
        raise OfframpError("compile needs an operating point or a policy (or active=() for none)")
    if policy is not None:
        policy.check(model.num_exits)
    if point is not None:
        fingerprint, versions = model.fingerprint(), describe_versions()
        wanted = str(next(model.parameters()).dtype).removeprefix("torch.")
        computed = wanted if build.precision == "model" else build.precision
        for change in point.check(fingerprint, engine, computed, versions):
            warnings.warn(change, stacklevel=2)
    parts = build_parts(model, chosen, policy, device=build.device, dtype=build.part_dtype)
    program = build.prepare(parts)
    if costs is not None and (costs.unit != "MACs" or costs.num_exits != model.num_exits):
        raise OfframpError(
            f"costs are {costs.unit} of {costs.num_exits} exits; expected MACs of {model.num_exits}"
        )
    return Runner(
        program,
        policy,
        check=InputCheck(
            model.chain.in_chans, model.chain.image_size, program.device, program.dtype
        ),
        num_classes=model.chain.num_classes,
        tables=_tables(model, policy, chosen, costs),
        exit_names=model.exit_names,
        engine=engine,
        plan=plan,
    )


def _check_plan(times: BatchTimes, runner: Runner) -> None:
    has = tuple(segment.exit_index for segment in runner.program.segments)
    for what, measured, found in (
        ("exits", times.exits, has),
        ("engine", times.engine, runner.engine),
        ("precision", times.precision, runner.precision),
    ):
        if measured != found:
            raise OfframpError(
                f"the plan was measured for {what} {measured}, but this runner has {found}: "
                "measure again with Runner.measure"
            )


def _tables(
    model: "MultiExitModel", policy: Policy | None, active: Sequence[int], costs: CostTable | None
) -> ExitTables:
    return ExitTables(
        blocks=torch.tensor(model.blocks),
        macs=None if costs is None else torch.tensor(costs.leave_cost(active), dtype=torch.float64),
        temperatures=temperatures_of(policy),
    )


def temperatures_of(policy: Policy | None) -> Tensor | None:
    """Softmax temperatures (K,) of a policy that has any other than 1."""
    temperatures = getattr(policy, "temperatures", None)
    scaled = temperatures is not None and set(temperatures) != {1.0}
    return torch.tensor(temperatures) if scaled else None
