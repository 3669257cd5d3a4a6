"""What a point may be asked for: a bound, which settings keep it, and which of those is best."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch

from offramp.calibration.front import FrontPoint, Measure, Setting
from offramp.calibration.promise import Promise
from offramp.calibration.records import Records
from offramp.calibration.search import Leavers
from offramp.calibration.sweep import Sweep
from offramp.costs.table import CostTable
from offramp.errors import OfframpError

SLACK = 1e-9  # a drop of exactly 0.5 points keeps a promise of 0.5
QUANTILES = {"p50": 0.5, "p95": 0.95}


class OutOfReachError(OfframpError):
    """No setting keeps a promise.

    Attributes:
        nearest: what the promise bounds, as it is at the closest setting.
        front: what can be had instead, cheapest first.
    """

    def __init__(self, sentence: str, nearest: float) -> None:
        super().__init__(sentence)
        self.nearest = nearest
        self.front: list[FrontPoint] = []


class Target(ABC):
    """A bound that settings are chosen by.

    Attributes:
        promise: what the chosen point will promise.
    """

    promise: Promise

    @property
    def border(self) -> Callable[[Measure], bool] | None:
        """The bound as a question about measures, where they tell all it is about."""
        return None

    @abstractmethod
    def holds(self, setting: Setting) -> bool:
        """Whether a setting keeps it on the samples it was measured on."""

    @abstractmethod
    def choose(self, settings: Sequence[Setting]) -> Setting:
        """The best setting that keeps it, or `OutOfReachError` with the closest."""

    def around(self, sweep: Sweep) -> list[Leavers]:
        """More threshold settings, near where the bound begins to hold."""
        return sweep.refine(self.border) if self.border else []


class MaxDrop(Target):
    """At most so much worse than the full model, as cheap as possible.

    Args:
        value: percentage points of accuracy; in regression MAE.
        records: what settings are measured on.
        certainty: demand that the loss, judged by its standard error, is within the bound with
            this probability.
    """

    def __init__(self, value: float, records: Records, certainty: float | None = None) -> None:
        self.task, self.count = records.task, len(records)
        self.full = records.full_accuracy
        if not math.isfinite(value):
            raise OfframpError(f"max_drop = {value}, but it must be a number of {self.task.unit}")
        if certainty is not None and not 0.5 <= certainty < 1:
            raise OfframpError(f"certainty = {certainty:g}, but it must be between 0.5 and 1")
        self.promise = Promise(
            kind="max_drop", value=value, unit=self.task.unit, certainty=certainty
        )
        sure = torch.tensor(0.5 if certainty is None else certainty)
        self.quantile = torch.special.ndtri(sure).item()

    @property
    def border(self) -> Callable[[Measure], bool]:
        return self._within

    def _within(self, found: Measure) -> bool:
        drop = self.full - found.accuracy
        margin = self.quantile * drop_error(drop, found.differ, self.count)
        return self.task.scale * (drop + margin) <= self.promise.value + SLACK

    def holds(self, setting: Setting) -> bool:
        return self._within(setting.measure)

    def choose(self, settings: Sequence[Setting]) -> Setting:
        kept = [setting for setting in settings if self.holds(setting)]
        if kept:
            return min(kept, key=lambda s: (s.measure.cost, -s.measure.accuracy))
        best = max(settings, key=lambda s: s.measure.accuracy).measure
        drop = self.task.scale * (self.full - best.accuracy)
        raise OutOfReachError(
            f"no point loses at most {self.promise.value:g} {self.promise.unit}: the closest loses "
            f"{drop:.2f} at {best.cost:.2f} of the full model's cost",
            drop,
        )


class MaxCost(Target):
    """At most a share of the unmodified model's cost, as good as possible."""

    def __init__(self, value: float, unit: str) -> None:
        if not (math.isfinite(value) and value > 0):
            raise OfframpError(f"max_cost = {value}, but it must be a share above 0, such as 0.5")
        self.promise = Promise(kind="max_cost", value=value, unit=unit)

    @property
    def border(self) -> Callable[[Measure], bool]:
        return self._within

    def _within(self, found: Measure) -> bool:
        return found.cost <= self.promise.value + SLACK

    def holds(self, setting: Setting) -> bool:
        return self._within(setting.measure)

    def choose(self, settings: Sequence[Setting]) -> Setting:
        kept = [setting for setting in settings if self.holds(setting)]
        if kept:
            return max(kept, key=lambda s: (s.measure.accuracy, -s.measure.cost))
        best = min(settings, key=lambda s: s.measure.cost).measure
        raise OutOfReachError(
            f"no point takes at most {self.promise.value:g} of the full model's "
            f"{self.promise.unit}: the closest takes {best.cost:.3f}",
            best.cost,
        )


class MaxLatency(Target):
    """At most so many milliseconds for half of the samples, or 95 % of them, as good as possible.

    Every sample takes what the table says of its exit: medians of the pieces, so that how times
    scatter and what a call costs besides are not in it. `offramp.runtime.bench` measures that.

    Args:
        value: milliseconds.
        table: latency table at batch size 1, in ms.
        quantile: ``p50`` or ``p95``.
    """

    def __init__(self, value: float, table: CostTable, quantile: str) -> None:
        if not (math.isfinite(value) and value > 0):
            raise OfframpError(f"max_latency_ms = {value}, but it must be a time above 0")
        size = table.meta.get("batch_size", 1)
        if table.unit != "ms" or size != 1:
            raise OfframpError(
                "max_latency_ms needs a latency table in ms at batch size 1 (made by "
                f"offramp.runtime.latency_table), not one in {table.unit} at batch size {size}"
            )
        self.table, self.quantile = table, quantile
        self.promise = Promise.model_validate(
            {"kind": "max_latency_ms", "value": value, "unit": "ms", "quantile": quantile}
        )

    def latency(self, setting: Setting) -> float:
        return latency_quantile(
            setting.measure.exit_share, setting.active, self.table, self.quantile
        )

    def holds(self, setting: Setting) -> bool:
        return self.latency(setting) <= self.promise.value + SLACK

    def choose(self, settings: Sequence[Setting]) -> Setting:
        kept = [setting for setting in settings if self.holds(setting)]
        if kept:
            return max(kept, key=lambda s: (s.measure.accuracy, -s.measure.cost))
        fastest = min(map(self.latency, settings))
        raise OutOfReachError(
            f"no point answers within {self.promise.value:g} ms ({self.quantile}): the fastest "
            f"takes {fastest:.3f} ms",
            fastest,
        )

    def around(self, sweep: Sweep) -> list[Leavers]:
        """Every setting with just enough samples leaving at one exit, or before it."""
        share = QUANTILES[self.quantile]
        starts = [sweep.search.empty(), *sweep.found.values()]
        found = [
            sweep.search.by_exit(leavers, k, share)
            for leavers in dict.fromkeys(starts)
            for k in range(sweep.search.exits - 1)
        ]
        return list(dict.fromkeys(found))


def drop_error(drop: float, differ: float, count: int) -> float:
    """Standard error of a paired difference of mean worth, given its mean square."""
    return math.sqrt(max(differ - drop * drop, 0.0) / count)


def latency_quantile(
    exit_share: Sequence[float], active: Sequence[int], table: CostTable, quantile: str
) -> float:
    """Milliseconds within which half, or 95 %, of the samples leave at their exits."""
    gone = np.cumsum(exit_share)
    first = int(np.argmax(gone >= QUANTILES[quantile] - SLACK))
    return table.leave_cost(active)[first]
