"""Deadlines: does the next segment still fit, by measured times and a clock that never goes back?

The anytime setting of Multi-Exit ViT (Bakhtiarnia, Zhang, Iosifidis, BMVC 2021): a budget ends and
the answer is that of the newest exit finished. What runs cannot be interrupted, so the decision
comes before each segment: it starts only when it should be over in time.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.batching import BatchPlan, BatchTimes
from offramp.runtime.pace import Pace
from offramp.runtime.pieces import powers_of_two

if TYPE_CHECKING:
    from offramp.runtime.runner import Runner

ROUNDS = 25
SMALL = 8  # up to here every batch size is measured, above powers of two

Clock = Callable[[], float]
"""Seconds, never going back."""


class Deadline:
    """The time left for one batch; it runs from the moment this is made.

    Args:
        budget_ms: milliseconds; 0 leaves the first exit, infinity ends nothing.
        clock: what tells the time.

    Attributes:
        times: milliseconds of a segment by its number and batch size; infinity needs none.
        closing: milliseconds from the end of the last segment to the answer.
        pace: what those times are multiplied with, and what hears how long segments took.
    """

    times: Callable[[int, int], float]
    closing: float = 0.0

    def __init__(self, budget_ms: float, clock: Clock) -> None:
        self.budget_ms = _budget(budget_ms)
        self.pace = Pace(1.0)
        self._clock = clock
        self._running: tuple[float, float] | None = None  # since when, and the time expected
        self.restart()

    @property
    def finite(self) -> bool:
        return self.budget_ms < math.inf

    def restart(self) -> None:
        """Begin again with the whole budget."""
        self._end = self._clock() + self.budget_ms / 1e3

    def fits(self, stage: int, samples: int) -> bool:
        """Whether segment ``stage`` would be over in time with a batch of ``samples``.

        Asked before every segment, the first one too: so the pace is heard of even where no other
        segment fits.
        """
        if not self.finite:
            return True
        now, expected = self._clock(), self.times(stage, samples)
        if self._running is not None:
            since, thought = self._running
            self.pace.note(1e3 * (now - since), thought)
        self._running = now, expected
        return now + (expected * self.pace.factor + self.closing) / 1e3 <= self._end


class Forecast:
    """A runner's latency table for deadlines: the one it was given, or measured when first needed.

    A measured table is measured again when a larger batch comes than any before, and follows the
    machine's pace from request to request; a given one is taken at its word. Measuring takes about
    30 times as long as answering each size once. What follows the last segment is measured for
    either.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._plan: BatchPlan | None = None
        self._closing: float | None = None
        self._measured_up_to: float = 0

    @property
    def times(self) -> BatchTimes | None:
        return None if self._plan is None else self._plan.times

    def give(self, times: BatchTimes | None) -> None:
        """Take a table; None has one measured when it is needed."""
        self._plan = None if times is None else BatchPlan(times)
        self._measured_up_to = 0 if times is None else math.inf

    def prepare(self, deadline: Deadline, runner: "Runner", images: Tensor) -> None:
        """Tell a deadline the times; if they must be measured first, its clock starts afterwards.

        Args:
            images: the batch (B, 3, H, W), B ≥ 1, which is what is measured on.
        """
        if self._closing is None:
            self._closing = median(runner.closing(len(images), ROUNDS))
            deadline.restart()
        if self._plan is None or len(images) > self._measured_up_to:
            sizes = sizes_up_to(len(images), runner.program.sizes)
            self._plan = BatchPlan(runner.measure(images, sizes, rounds=ROUNDS))
            self._measured_up_to = len(images)
            self._pace = Pace()
            deadline.restart()
        deadline.times, deadline.closing = self._plan.time, self._closing
        if self._measured_up_to < math.inf:
            self._pace.settle()
            deadline.pace = self._pace


def sizes_up_to(batch: int, shapes: Sequence[int] = ()) -> list[int]:
    """Batch sizes to measure where survivors of ``batch`` samples may be of any number.

    Args:
        shapes: the sizes a program has shapes for, where it runs no other.
    """
    if shapes:
        enough = [size for size in shapes if size >= batch]
        return [*(size for size in shapes if size < batch), *sorted(enough)[:1]]
    return list(range(1, batch + 1)) if batch <= SMALL else list(powers_of_two(batch))


def _budget(given: Any) -> float:
    try:
        budget = float(given)
    except (TypeError, ValueError):
        budget = math.nan
    if not budget >= 0:
        raise OfframpError(f"deadline_ms = {given!r}, but it must be a number of milliseconds ≥ 0")
    return budget
