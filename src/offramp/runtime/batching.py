"""What batch sizes cost, measured, and what follows: where to fill up, to compact, to wait."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offramp.files import read_model, write_json

SLACK = 1.01
"""A batch size is as good as the best when a sample takes at most so much longer in it."""
REMEMBERED = 1 << 14  # decisions per plan and kind


class SegmentTimes(BaseModel):
    """One segment's time by batch size, in milliseconds per call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exit_index: int
    ms: dict[int, float] = Field(
        min_length=1, description="the segment, its decision and the wait for it"
    )
    copy_ms: dict[int, float] = Field(
        min_length=1, description="gathering so many samples of what the segment takes"
    )
    reach: float = Field(ge=0, le=1, description="share of the samples that come to the segment")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if min(*self.ms, *self.copy_ms) < 1:
            raise ValueError("batch sizes must be at least 1")
        if not all(0 < ms < inf for ms in (*self.ms.values(), *self.copy_ms.values())):
            raise ValueError("times must be finite and positive")
        return self


class BatchTimes(BaseModel):
    """Measured times of a program's segments at several batch sizes; made by `measure_program`.

    Args:
        engine, precision: what ran.
        fixed: the engine has shapes for the measured sizes only, and fills other batches up.
        segments: in order.
        meta: what else belongs to the numbers (rounds, hardware, …).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    precision: str
    fixed: bool
    segments: tuple[SegmentTimes, ...] = Field(min_length=1)
    meta: dict[str, Any] = {}

    @property
    def exits(self) -> tuple[int, ...]:
        return tuple(segment.exit_index for segment in self.segments)

    def save(self, path: Path | str) -> None:
        """Write the table as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a saved table, or raise `OfframpError` naming file and key."""
        return read_model(cls, path, "batch times")


class Curve:
    """Milliseconds by batch size: straight lines between measured sizes.

    It never falls: where a larger measured size is quicker, a batch may be filled up to that.
    """

    def __init__(self, ms: Mapping[int, float]) -> None:
        self.sizes = sorted(ms)
        self._ms = [ms[size] for size in self.sizes]

    def __call__(self, n: int) -> float:
        return min([self._exact(n), *self._ms[bisect_left(self.sizes, n) :]])

    def size(self, n: int, filling: "Curve") -> int:
        """Batch size to run ``n`` samples at: larger if that saves more time than it costs."""
        after = bisect_left(self.sizes, n)
        times = zip(self._ms[after:], self.sizes[after:], strict=True)
        return min([(self._exact(n), n), *((ms + filling(size), size) for ms, size in times)])[1]

    def _exact(self, n: int) -> float:
        sizes, ms = self.sizes, self._ms
        if n <= sizes[0]:
            return ms[0]  # nothing smaller was measured; it will not take longer
        if n >= sizes[-1]:
            return ms[-1] * n / sizes[-1]
        i = bisect_left(sizes, n)
        share = (n - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
        return ms[i - 1] + share * (ms[i] - ms[i - 1])


class Shapes:
    """Milliseconds by batch size where only measured sizes can run: one that is larger, or several.

    Args:
        ms: per size.
        join: time to put so many samples together again when they were run in several calls.
    """

    def __init__(self, ms: Mapping[int, float], join: Curve | None) -> None:
        self.sizes, self._ms, self._join = sorted(ms), ms, join
        self._cheapest = [(0.0, 0)]  # for n samples: time of the best calls, size of the first

    def __call__(self, n: int) -> float:
        return self.calls(n)[0]

    def calls(self, n: int) -> tuple[float, tuple[int, ...]]:
        """Time for ``n`` samples, and the sizes of the calls, the largest first."""
        single = min(
            ((ms, (size,)) for size, ms in self._ms.items() if size >= n), default=(inf, ())
        )
        for count in range(len(self._cheapest), n + 1):  # a covering knapsack, grown as needed
            self._cheapest.append(
                min(
                    (ms + self._cheapest[max(0, count - size)][0], size)
                    for size, ms in self._ms.items()
                )
            )
        sizes, rest = [], n
        while rest > 0:
            sizes.append(self._cheapest[rest][1])
            rest -= sizes[-1]
        several = self._cheapest[n][0] + (self._join(n) if self._join else 0.0)
        if len(sizes) == 1 or single[0] <= several:
            return single
        return several, tuple(sorted(sizes, reverse=True))


class BatchPlan:
    """What measured times say about running a program; it changes when, never what, is answered.

    Args:
        times: of every segment; samples are expected to stop as they did while it was measured.
    """

    def __init__(self, times: BatchTimes) -> None:
        self.times = times
        self._copy = [Curve(segment.copy_ms) for segment in times.segments]
        joins = [*self._copy[1:], None]
        self._run: list[Curve | Shapes] = [
            Shapes(segment.ms, join) if times.fixed else Curve(segment.ms)
            for segment, join in zip(times.segments, joins, strict=True)
        ]
        remember = lru_cache(maxsize=REMEMBERED)
        self._rest: Callable[[int, int, int], float] = remember(self._expect)
        self._kept: Callable[[int, int, int], int] = remember(self._choose)
        self._calls: Callable[[int, int], tuple[int, ...]] = remember(self._cover)

    @cached_property
    def survival(self) -> list[float]:
        """Share of each segment's samples that go on to the next."""
        reach = [segment.reach for segment in self.times.segments]
        return [min(1.0, later / here) if here else 0.0 for here, later in pairwise(reach)]

    def calls(self, stage: int, n: int) -> tuple[int, ...]:
        """Sizes of the calls that run ``n`` samples through a segment quickest.

        The last may be larger than what is left for it, and is then filled up.
        """
        return self._calls(stage, n)

    def time(self, stage: int, n: int) -> float:
        """Milliseconds of those calls."""
        return self._run[stage](n)

    def keep(self, stage: int, n: int, alive: int) -> int:
        """Rows to go on with after a segment, where of ``n`` rows ``alive`` have not stopped.

        ``n``: compaction would not pay, stopped samples ride along. Fewer: gather so many rows,
        the living and, where the next call would be filled up anyway, some that have stopped.
        """
        return self._kept(stage, n, alive)

    def _cover(self, stage: int, n: int) -> tuple[int, ...]:
        run = self._run[stage]
        if isinstance(run, Shapes):
            return run.calls(n)[1]
        return (run.size(n, filling=self._copy[stage]),)

    def _choose(self, stage: int, n: int, alive: int) -> int:
        ride = self._rest(stage + 1, n, alive)
        compact, ms = self._compacted(stage + 1, n, alive)
        return compact if compact < n and ms < ride else n

    def _expect(self, stage: int, rows: int, alive: int) -> float:
        """Expected ms from segment ``stage`` to the end for ``alive`` samples among ``rows``."""
        ms = self.time(stage, rows)
        left = ceil(alive * self.survival[stage]) if stage < len(self.survival) else 0
        if not left:
            return ms
        return ms + min(
            self._rest(stage + 1, rows, left), self._compacted(stage + 1, rows, left)[1]
        )

    def _compacted(self, stage: int, rows: int, alive: int) -> tuple[int, float]:
        """Rows after compaction before a segment, and expected ms from the gathering to the end."""
        compact = min(rows, sum(self.calls(stage, alive)))
        return compact, self._copy[stage](compact) + self._rest(stage, compact, alive)

    def best_size(self, stage: int, limit: int) -> int:
        """The batch size up to ``limit`` at which a sample takes least: the smallest such."""
        sizes = [size for size in self._run[stage].sizes if size <= limit] or [limit]
        each = {size: self.time(stage, size) / size for size in sizes}
        quickest = min(each.values())
        return next(size for size in sizes if each[size] <= SLACK * quickest)

    def waits(self, stage: int, waiting: int, limit: int) -> bool:
        """Whether ``waiting`` samples should wait for more before a segment.

        They should when running in the best batch saves each more time than joining it costs.
        """
        best = self.best_size(stage, limit)
        if waiting >= best:
            return False
        saved = self.time(stage, waiting) / waiting - self.time(stage, best) / best
        return saved > self._copy[stage](best) / best
