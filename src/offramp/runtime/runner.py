"""The runner: segments of a program, one after the other, until every sample has left."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies import Policy
from offramp.runtime.batching import BatchPlan, BatchTimes
from offramp.runtime.deadline import Clock, Deadline, Forecast
from offramp.runtime.engines import Program
from offramp.runtime.hosting import hosting
from offramp.runtime.inputs import InputCheck
from offramp.runtime.prediction import ExitTables, Prediction
from offramp.runtime.scheduler import Scheduler
from offramp.runtime.stages import Departure, Executed, Flow, Stages
from offramp.runtime.timing import SIZES, measure_program

if TYPE_CHECKING:
    from offramp.uncertainty.conformal import Conformal


class Runner:
    """Answers batches; every sample stops on its own, and stopped samples cost nothing more.

    Made by `compile_runner`. Call it for one batch now (latency mode), or `stream` batches
    through it (throughput mode).

    Attributes:
        active: early exits compiled in, by index.
        exit_names: names of all exits of the model.
        executed: per segment, how often and on how many samples it ran.
        engine, precision: what the answers were computed with.
        clock: what deadlines go by, in seconds.
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
        self.clock: Clock = perf_counter
        self._forecast = Forecast()

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
            _check_times(plan.times, self, "plan was")
        self._stages.plan = self._streaming.plan = plan

    @property
    def conformal(self) -> "Conformal | None":
        """What makes `Prediction.sets`; None: nothing. Samples that a deadline cut short are not
        what it was calibrated on."""
        return self.tables.conformal

    @conformal.setter
    def conformal(self, conformal: "Conformal | None") -> None:
        if conformal is not None:
            conformal.check(self.policy, self.active, self.engine, self.precision)
            if conformal.randomized:
                raise OfframpError(
                    "randomized prediction sets need the samples' ids: use "
                    "conformal.sets(answer.probs, answer.exit, ids)"
                )
        self.tables = replace(self.tables, conformal=conformal)

    @property
    def times(self) -> BatchTimes | None:
        """What deadlines expect of the segments; None: measured on the first batch with one."""
        return self._forecast.times

    @times.setter
    def times(self, times: BatchTimes | None) -> None:
        if times is not None:
            _check_times(times, self, "times were")
        self._forecast.give(times)

    def measure(
        self,
        images: Tensor,
        sizes: Sequence[int] = SIZES,
        *,
        rounds: int = 7,
        quantile: float = 0.5,
    ) -> BatchTimes:
        """Time the segments at several batch sizes, for a `BatchPlan` or for deadlines.

        Args:
            images: real, preprocessed images (N, 3, H, W).
            sizes: samples per call; larger batches are judged by the largest.
            rounds: measured rounds.
            quantile: of their times: the median for a plan, 0.95 and more rounds for `times`.
        """
        return measure_program(
            self.program,
            self._check(images),
            sizes,
            engine=self.engine,
            memory=self.memory,
            rounds=rounds,
            quantile=quantile,
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

    def __call__(
        self, images: Tensor, *, ids: Tensor | None = None, deadline_ms: float | None = None
    ) -> Prediction:
        """Answer a batch of any size, also an empty one.

        With a deadline samples stop as the policy says while there is time; the rest has the answer
        of the newest exit that could be finished, and is marked in ``cut``. The first exit always
        answers, also when it is late. What fits is judged by `times`: without them, the first call
        with a deadline measures before its clock starts.

        Args:
            images: preprocessed images (B, 3, H, W).
            ids: sample numbers (B,) int64, for policies that draw at random.
            deadline_ms: milliseconds from now for the whole batch.

        Raises:
            OfframpError: for a wrong shape or type; for NaN or infinite values, naming samples; for
                a deadline below 0.
        """
        deadline = None if deadline_ms is None else Deadline(deadline_ms, self.clock)
        if deadline is not None and deadline.finite and len(images):
            self._forecast.prepare(deadline, self, images)
        with hosting(self.program):
            images = self._check(images)
            n = len(images)
            if n == 0:
                return self._empty(deadline)
            flow = Flow(None, (images, *self.memory(n, ids)))
            departures: list[Departure] = []
            cut: Departure | None = None
            for stage in range(len(self._stages)):
                if deadline is not None and not deadline.fits(stage, flow.samples) and stage:
                    cut = self._stages.cut(stage - 1, flow)
                    departures.append(cut)
                    break
                rest, departure = self._stages.advance(stage, flow, said=deadline is not None)
                if departure is not None:
                    departures.append(departure)
                if rest is None:
                    break
                flow = rest
            answered = self._assemble(departures, n)
            return answered if deadline is None else _marked(answered, cut)

    def closing(self, batch: int, rounds: int) -> list[float]:
        """Milliseconds from the end of the last segment to the answer, once per round."""
        answer = torch.zeros(batch, self.num_classes, dtype=self.dtype, device=self.device)
        departure, took = Departure(None, 0, answer), []
        for _ in range(rounds):
            with hosting(self.program):
                begun = self.clock()
                _marked(self._assemble([departure], batch), departure)
            took.append(1e3 * (self.clock() - begun))
        return took

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

    def _empty(self, deadline: Deadline | None) -> Prediction:
        logits = torch.empty(0, self.num_classes, dtype=self.dtype, device=self.device)
        exits = torch.empty(0, dtype=torch.int64, device=self.device)
        answered = Prediction(logits, exits, self.tables)
        return answered if deadline is None else _marked(answered, None)


def _marked(answered: Prediction, cut: Departure | None) -> Prediction:
    """A prediction that says who was cut; ``rows`` of None are everybody."""
    mask = torch.full_like(answered.exit, cut is not None, dtype=torch.bool)
    if cut is not None and cut.rows is not None:
        mask = torch.zeros_like(mask).index_fill_(0, cut.rows, True)
    return replace(answered, cut=mask)


def _check_times(times: BatchTimes, runner: Runner, what_was: str) -> None:
    has = tuple(segment.exit_index for segment in runner.program.segments)
    for what, measured, found in (
        ("exits", times.exits, has),
        ("engine", times.engine, runner.engine),
        ("precision", times.precision, runner.precision),
    ):
        if measured != found:
            raise OfframpError(
                f"the {what_was} measured for {what} {measured}, but this runner has {found}: "
                "measure again with Runner.measure"
            )
