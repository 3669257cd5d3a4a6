"""Threshold search: which exits stay active, and how sure each must be.

For a price λ per unit of cost the search maximises

    mean(worth) − λ · mean(cost)

by coordinate ascent over the exits: given the others, the best threshold of one exit is the best
prefix of its samples sorted by score (prefix sums, all thresholds at once), and it competes with
switching the exit off, which saves its head for every sample that gets there. Sweeping λ draws the
front; everything is arithmetic on the (N, K) scalars of the records.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.front import Measure
from offramp.registry import Registry

Floats = NDArray[np.float64]
OFF = -1  # in place of a number of leavers: the exit is switched off
_MAX_PASSES = 30
_GAIN = 1e-5  # a pass that improves the objective by less than this ends the climb
_PLACES = 2048  # thresholds per exit, evenly by rank, where samples offer more
Leavers = tuple[int, ...]  # (K-1,) how many of all samples score above the threshold, or OFF


SEARCHES: "Registry[type[ThresholdSearch]]" = Registry("search")


@SEARCHES.register("coordinate")
class ThresholdSearch:
    """Coordinate ascent over thresholds and active exits for one score, ready for any λ.

    Args:
        scores: (N, K) float32, higher is surer.
        worth: (N, K) what each answer is worth, which settings are measured by: being right
            (bool), or any number of which more is better.
        expected: (N, K) expected worth, what the climb goes by; ``worth`` itself when omitted,
            which learns small sets by heart (see `smoothing`).
        full: (N,) worth of the full model's answers; those of the last exit when omitted.
        body: (K,) cost of the steps since the previous exit, as a share of the full model.
        head: (K,) cost of each exit's head, as a share of the full model.
        locked: exits that may not be switched off.
        always: a threshold below every score.
        never: a threshold that no score exceeds.

    Attributes:
        places: thresholds that are considered per exit.
        steps: per early exit, how many samples each of them lets leave, ascending.
        cells: per early exit (N,), the first of them that lets a sample leave.
    """

    places = _PLACES

    def __init__(
        self,
        scores: NDArray[np.float32],
        worth: NDArray[np.bool_] | Floats,
        body: Sequence[float] | Floats,
        head: Sequence[float] | Floats,
        *,
        expected: Floats | None = None,
        full: NDArray[np.bool_] | Floats | None = None,
        locked: Sequence[int] = (),
        always: float,
        never: float,
    ) -> None:
        self.count, self.exits = scores.shape
        self.scores = np.ascontiguousarray(scores.T)  # (K, N)
        self.true_worth = np.ascontiguousarray(worth.T, dtype=np.float64)
        self.full = self.true_worth[-1] if full is None else np.asarray(full, dtype=np.float64)
        self.unit = 1.0 if worth.dtype == bool else float(np.abs(worth).mean()) or 1.0
        values = worth if expected is None else expected
        self.worth = np.ascontiguousarray(values.T, dtype=np.float64)
        self.body, self.head = np.asarray(body, float), np.asarray(head, float)
        self.locked = frozenset(locked)
        self.always, self.never = always, never
        early = range(self.exits - 1)
        self.order = [np.argsort(-self.scores[k]) for k in early]
        ordered = [self.scores[k][self.order[k]] for k in early]
        self.steps = [_thinned(_steps(column), self.places) for column in ordered]
        self.cells = [_cells(*pair) for pair in zip(self.order, self.steps, strict=True)]
        self._measured: dict[Leavers, Measure] = {}

    def threshold(self, k: int, leavers: int) -> float:
        """Threshold that exactly ``leavers`` of all samples exceed at exit ``k``.

        Midway between two neighbouring observed scores, and exact in float32, the precision in
        which policies compare.
        """
        if leavers <= 0:
            return self.never
        if leavers >= self.count:
            return self.always
        order = self.order[k]
        return midway(self.scores[k, order[leavers]], self.scores[k, order[leavers - 1]])

    def thresholds(self, leavers: Leavers) -> tuple[float, ...]:
        """(K,) thresholds; never at exits that are off and at the last."""
        return (*(self.threshold(k, m) for k, m in enumerate(leavers)), self.never)

    def empty(self) -> Leavers:
        """Nobody leaves early: every exit off that may be."""
        return tuple(0 if k in self.locked else OFF for k in range(self.exits - 1))

    def static(self, k: int) -> Leavers:
        """Every sample leaves at exit ``k``."""
        leavers = list(self.empty())
        if k < self.exits - 1:
            leavers[k] = self.count
        return tuple(leavers)

    def _fires(self, k: int, leavers: int) -> NDArray[np.bool_]:
        return self.scores[k] > np.float32(self.threshold(k, leavers))

    def measure(self, leavers: Leavers) -> Measure:
        """Accuracy, cost share and exit shares of a setting."""
        if leavers not in self._measured:
            self._measured[leavers] = self._measure(leavers)
        return self._measured[leavers]

    def _measure(self, leavers: Leavers) -> Measure:
        place = self.leave(leavers)
        share = np.bincount(place, minlength=self.exits) / self.count
        on = [m != OFF for m in leavers]
        paid = np.cumsum(self.body) + np.cumsum(self.head * [*on, True])
        worth = self.true_worth[place, np.arange(self.count)]
        lost = worth - self.full
        return Measure(
            accuracy=float(worth.mean()),
            differ=float(np.square(lost).mean()),
            cost=float(share @ paid),
            exit_share=tuple(share.tolist()),
        )

    def leave(self, leavers: Leavers) -> NDArray[np.intp]:
        """(N,) the exit at which every sample leaves."""
        passed = np.zeros(self.count, dtype=np.int16)
        waiting = np.ones(self.count, dtype=bool)
        for k, m in enumerate(leavers):
            if m > 0:
                waiting &= ~self._fires(k, m)
            passed += waiting
        return passed.astype(np.intp)

    def expected(self, leavers: Leavers) -> float:
        """Mean expected worth of a setting: what the climb takes its accuracy for."""
        return float(self.worth[self.leave(leavers), np.arange(self.count)].mean())

    def by_exit(self, leavers: Leavers, k: int, share: float) -> Leavers:
        """The setting with just so many leaving at exit ``k`` that ``share`` of all are gone."""
        gone = self.leave(leavers) < k
        wanted = share * self.count - np.count_nonzero(gone) - 1e-6
        there = np.cumsum(~gone[self.order[k]])[self.steps[k] - 1]
        enough = int(np.searchsorted(there, wanted))
        changed = list(leavers)
        if wanted > 0:
            changed[k] = int(self.steps[k][min(enough, len(there) - 1)])
        return self.tidy(tuple(changed))

    def tidy(self, leavers: Leavers) -> Leavers:
        """Switch off exits at which nobody leaves: no decision changes, their heads are saved."""
        shares = self.measure(leavers).exit_share
        return tuple(m if shares[k] > 0 or k in self.locked else OFF for k, m in enumerate(leavers))

    def best(self, price: float, starts: Sequence[Leavers]) -> Leavers:
        """The best setting found at a price per unit of cost, given where to begin."""
        climbs = [self.solve(price, start) for start in starts]
        return max(climbs, key=lambda climb: climb[1])[0]

    def solve(self, price: float, start: Leavers) -> tuple[Leavers, float]:
        """Climb from ``start`` until no exit can do better alone; returns (setting, objective)."""
        leavers, best = start, -np.inf
        for _ in range(_MAX_PASSES):
            found, value = self._descend(price, leavers)
            if value <= best + _GAIN * self.unit:
                break
            leavers, best = found, value
        return leavers, best

    def _descend(self, price: float, leavers: Leavers) -> tuple[Leavers, float]:
        """Set every exit once, deep to shallow, each best given the others."""
        found = list(leavers)
        reach = self._reach(leavers)
        body, head = price * self.body, price * self.head
        # What a sample arriving at exit k+1 is worth from there on is ``value`` + ``shift``.
        value, shift = self.worth[-1].copy(), -head[-1]
        gain = np.empty_like(value)
        for k in reversed(range(self.exits - 1)):
            shift -= body[k + 1]
            np.subtract(self.worth[k], value, out=gain)
            gain -= shift
            sums = np.cumsum(np.bincount(self.cells[k], gain * reach[k], len(self.steps[k])))
            at = int(sums.argmax())
            price_of_head = head[k] * np.count_nonzero(reach[k])
            if k in self.locked:
                found[k] = int(self.steps[k][at]) if sums[at] > 0 else 0
            else:
                found[k] = int(self.steps[k][at]) if sums[at] > price_of_head else OFF
            if found[k] != OFF:
                gain *= self._fires(k, found[k])  # choosing by arithmetic: masks cost ten times it
                value += gain
                shift -= head[k]
        return tuple(found), float(value.mean() + shift - body[0])

    def _reach(self, leavers: Leavers) -> list[NDArray[np.bool_]]:
        """Who gets to each early exit: nobody stopped them before."""
        reach = [np.ones(self.count, dtype=bool)]
        for k, m in enumerate(leavers[:-1]):
            reach.append(reach[-1] if m <= 0 else reach[-1] & ~self._fires(k, m))
        return reach


def _steps(descending: NDArray[np.float32]) -> NDArray[np.intp]:
    """Numbers of leavers that a threshold can reach: equal scores leave together."""
    changes = np.flatnonzero(descending[1:] != descending[:-1]) + 1
    return np.append(changes, len(descending))


def _thinned(steps: NDArray[np.intp], places: int) -> NDArray[np.intp]:
    """At most so many of the steps, evenly by rank, the last one always among them."""
    if len(steps) <= places:
        return steps
    wanted = np.linspace(0, steps[-1], places + 1)[1:]
    return np.unique(steps[np.searchsorted(steps, wanted)])


def _cells(order: NDArray[np.intp], steps: NDArray[np.intp]) -> NDArray[np.intp]:
    """(N,) index of the first step that includes a sample."""
    cells = np.empty(len(order), dtype=np.intp)
    cells[order] = np.repeat(np.arange(len(steps)), np.diff(steps, prepend=0))
    return cells


def midway(low: float, high: float) -> float:
    """A number t, exact in float32, with low ≤ t < high in float32: halfway where there is room."""
    below, above = np.float32(low), np.float32(high)
    middle = np.float32((float(below) + float(above)) / 2)
    return float(middle if middle < above else below)
