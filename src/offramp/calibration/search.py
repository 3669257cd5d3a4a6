"""Threshold search: which exits stay active, and how sure each must be.

For a price λ per unit of cost the search maximises

    mean(correct) − λ · mean(cost)

by coordinate ascent over the exits: given the others, the best threshold of one exit is the best
prefix of its samples sorted by score (prefix sums, all thresholds at once), and it competes with
switching the exit off, which saves its head for every sample that gets there. Sweeping λ draws the
front; everything is arithmetic on the (N, K) scalars of the records.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.front import Measure

Floats = NDArray[np.float64]
OFF = -1  # in place of a number of leavers: the exit is switched off
_MAX_PASSES = 30
_GAIN = 1e-5  # a pass that improves the objective by less than this ends the climb
Leavers = tuple[int, ...]  # (K-1,) how many of all samples score above the threshold, or OFF


class ThresholdSearch:
    """Coordinate ascent over thresholds and active exits for one score, ready for any λ.

    Args:
        scores: (N, K) float32, higher is surer.
        correct: (N, K) bool, what settings are measured by.
        expected: (N, K) probability of being right, what the climb goes by; ``correct`` itself
            when omitted, which learns small sets by heart (see `smoothing`).
        body: (K,) cost of the steps since the previous exit, as a share of the full model.
        head: (K,) cost of each exit's head, as a share of the full model.
        locked: exits that may not be switched off.
        always: a threshold below every score.
        never: a threshold that no score exceeds.
    """

    def __init__(
        self,
        scores: NDArray[np.float32],
        correct: NDArray[np.bool_],
        body: Sequence[float] | Floats,
        head: Sequence[float] | Floats,
        *,
        expected: Floats | None = None,
        locked: Sequence[int] = (),
        always: float,
        never: float,
    ) -> None:
        self.count, self.exits = scores.shape
        self.scores = np.ascontiguousarray(scores.T)  # (K, N)
        self.right = np.ascontiguousarray(correct.T)
        values = correct if expected is None else expected
        self.worth = np.ascontiguousarray(values.T, dtype=np.float64)
        self.body, self.head = np.asarray(body, float), np.asarray(head, float)
        self.locked = frozenset(locked)
        self.always, self.never = always, never
        early = range(self.exits - 1)
        self.order = [np.argsort(-self.scores[k], kind="stable") for k in early]
        self.steps = [_steps(self.scores[k][self.order[k]]) for k in early]

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
        waiting = np.ones(self.count, dtype=bool)
        shares, right, differ = [], 0, 0
        paid, cost = 0.0, 0.0
        for k in range(self.exits):
            last = k == self.exits - 1
            on = last or leavers[k] != OFF
            paid += self.body[k] + (self.head[k] if on else 0.0)
            leaving = waiting if last else waiting & self._fires(k, leavers[k])
            share = np.count_nonzero(leaving) / self.count
            shares.append(share)
            right += int(np.count_nonzero(self.right[k] & leaving))
            differ += int(np.count_nonzero((self.right[k] ^ self.right[-1]) & leaving))
            cost += share * paid
            if not last:
                waiting = waiting & ~leaving
        return Measure(right / self.count, differ / self.count, cost, tuple(shares))

    def tidy(self, leavers: Leavers) -> Leavers:
        """Switch off exits at which nobody leaves: no decision changes, their heads are saved."""
        shares = self.measure(leavers).exit_share
        return tuple(m if shares[k] > 0 or k in self.locked else OFF for k, m in enumerate(leavers))

    def solve(self, price: float, start: Leavers) -> tuple[Leavers, float]:
        """Climb from ``start`` until no exit can do better alone; returns (setting, objective)."""
        leavers, best = start, -np.inf
        for _ in range(_MAX_PASSES):
            found, value = self._descend(price, leavers)
            if value <= best + _GAIN:
                break
            leavers, best = found, value
        return leavers, best

    def _descend(self, price: float, leavers: Leavers) -> tuple[Leavers, float]:
        """Set every exit once, deep to shallow, each best given the others."""
        found = list(leavers)
        reach = self._reach(leavers)
        body, head = price * self.body, price * self.head
        worth = self.worth[-1] - head[-1]  # of a sample arriving at exit k+1, from there on
        for k in reversed(range(self.exits - 1)):
            stay = worth - body[k + 1]
            gain = (self.worth[k] - stay) * reach[k]
            sums = np.cumsum(gain[self.order[k]])[self.steps[k] - 1]
            at = int(sums.argmax())
            price_of_head = head[k] * np.count_nonzero(reach[k])
            if k in self.locked:
                found[k] = int(self.steps[k][at]) if sums[at] > 0 else 0
            else:
                found[k] = int(self.steps[k][at]) if sums[at] > price_of_head else OFF
            worth = stay
            if found[k] != OFF:
                worth = np.where(self._fires(k, found[k]), self.worth[k], stay) - head[k]
        return tuple(found), float(worth.mean() - body[0])

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


def midway(low: float, high: float) -> float:
    """A number t, exact in float32, with low ≤ t < high in float32: halfway where there is room."""
    below, above = np.float32(low), np.float32(high)
    middle = np.float32((float(below) + float(above)) / 2)
    return float(middle if middle < above else below)
