"""Sweep: threshold settings along the whole front, closest where it bends."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from offramp.calibration.front import Measure
from offramp.calibration.search import OFF, Leavers, ThresholdSearch

_COARSE = 8  # prices before the gaps are filled
_SOLVES = 26
_GAP = 0.01  # in worth plus cost share: no finer than this
_ROUNDS = 9
_BLENDS = 16


class Sweep:
    """Settings at growing price of cost: from the most accurate to the cheapest.

    The first price is so low that only accuracy counts, the last so high that only cost does.
    """

    def __init__(self, search: ThresholdSearch) -> None:
        self.search = search
        self.found: dict[float, Leavers] = {}
        smallest = min(share for share in (*search.body[1:], 1.0) if share > 0)
        for price in np.geomspace(1e-3, 4 / smallest, _COARSE):
            self._solve(float(price) * search.unit)
        self._fill()

    def settings(self) -> list[Leavers]:
        """Everything found, every static exit, and blends across the jumps between them."""
        static = [self.search.static(k) for k in range(self.search.exits)]
        ramps = [setting for k in range(1, self.search.exits) for setting in self._ramp(k)]
        return list(dict.fromkeys([*self.found.values(), *self._bridges(), *ramps, *static]))

    def _bridges(self) -> list[Leavers]:
        """Blends of neighbours far apart in cost: no price leads between them, yet some budgets lie
        there."""
        found = []
        for low, high in pairwise(sorted(self.found)):
            one, other = self.found[low], self.found[high]
            wide = abs(self.measure(one).cost - self.measure(other).cost)
            steps = min(round(wide / _GAP), _BLENDS)
            found += [self._blend(one, other, step / steps) for step in range(1, steps)]
        return found

    def _ramp(self, last: int) -> list[Leavers]:
        """Blends of a static exit with the best of what is cheaper: ever fewer leave ahead of it.

        The climb goes by expected worth, so prices may lead past an exit that turns out better.
        """
        static = self.search.static(last)
        mine, known = self.measure(static), {s: self.measure(s) for s in self.found.values()}
        cheaper = [s for s in known if known[s].cost < mine.cost]
        best = max(cheaper, key=lambda s: known[s].accuracy, default=static)
        if known.get(best, mine).accuracy >= mine.accuracy:
            return []
        steps = min(round((mine.cost - known[best].cost) / _GAP), _BLENDS)
        ahead = best[:last]
        return [
            self.search.tidy(
                (*(m if m == OFF else round(m * step / steps) for m in ahead), *static[last:])
            )
            for step in range(1, steps + 1)
        ]

    def measure(self, leavers: Leavers) -> Measure:
        return self.search.measure(leavers)

    def refine(self, holds: Callable[[Measure], bool]) -> list[Leavers]:
        """Settings around the price where a promise begins to hold, or stops."""
        prices = sorted(self.found)
        kept = [holds(self.measure(self.found[price])) for price in prices]
        borders = [i for i in range(len(prices) - 1) if kept[i] != kept[i + 1]]
        if not borders:
            return []
        # A loss is best at the last border (cheapest), a budget has one border only.
        low, high = prices[borders[-1]], prices[borders[-1] + 1]
        low_holds = kept[borders[-1]]
        found = []
        for _ in range(_ROUNDS):
            middle = float(np.sqrt(low * high))
            found.append(self._solve(middle))
            if holds(self.measure(found[-1])) == low_holds:
                low = middle
            else:
                high = middle
        steps = [step / _BLENDS for step in range(1, _BLENDS)]
        found += [self._blend(self.found[low], self.found[high], step) for step in steps]
        return found

    def _solve(self, price: float) -> Leavers:
        """Climb from nothing and from the next cheaper price's setting; keep the better."""
        below = [known for known in self.found if known < price]
        starts = [self.search.empty()]
        if below:
            starts.append(self.found[max(below)])
        best = self.search.best(price, list(dict.fromkeys(starts)))
        self.found[price] = self.search.tidy(best)
        return self.found[price]

    def _fill(self) -> None:
        """Halve the widest gap between neighbouring prices until none is wide."""
        while len(self.found) < _SOLVES:
            prices = sorted(self.found)
            gaps = [self._gap(low, high) for low, high in pairwise(prices)]
            widest = int(np.argmax(gaps))
            if gaps[widest] < _GAP:
                return
            self._solve(float(np.sqrt(prices[widest] * prices[widest + 1])))

    def _gap(self, low: float, high: float) -> float:
        one, other = self.measure(self.found[low]), self.measure(self.found[high])
        if high / low < 1.001:
            return 0.0  # a jump of the front, not a gap in the sweep
        gained = abs(one.accuracy - other.accuracy) / self.search.unit
        return gained + abs(one.cost - other.cost)

    def between(self, count: int) -> list[Leavers]:
        """All settings found, in order of price, with ``count`` blends between neighbours."""
        prices = sorted(self.found)
        path = [self.found[prices[0]]]
        for low, high in pairwise(prices):
            one, other = self.found[low], self.found[high]
            path += [self._blend(one, other, step / (count + 1)) for step in range(1, count + 1)]
            path.append(other)
        return list(dict.fromkeys(path))

    def _blend(self, one: Leavers, other: Leavers, weight: float) -> Leavers:
        """Leavers between two settings; an exit that is on in one only is on in its half."""
        blended = [
            round((1 - weight) * a + weight * b)
            if a != OFF and b != OFF
            else (a if weight < 0.5 else b)
            for a, b in zip(one, other, strict=True)
        ]
        return self.search.tidy(tuple(blended))
