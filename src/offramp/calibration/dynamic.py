"""Dynamic programming over the exits: a second threshold search, to check the first one by.

V(k, t) is the best objective of a setting whose last active early exit is k with threshold t. It
grows out of the settings that end at an earlier exit j with a threshold s:

    V(k, t) = max over j < k and s of  V(j, s) + G(k, t | S)

where S are the samples that the best setting of (j, s) leaves waiting, and

    G(k, t | S) = 1/N Σ_{i ∈ S, score_ik > t} [ w_ik − w_iK + λ c(k→K) ] − λ h_k |S| / N

is what the samples that now leave at k are worth more there than at the end, what they save on the
way, and what the head costs all who get to it (w expected worth, c cost of the bodies after k and
of the last head, h heads). S is the real set of samples, so every V is the true objective of its
setting; all that is given up is a worse start with a luckier S, which is forgotten. With one or two
early exits nothing is: every pair of thresholds is tried. Thresholds are quantised to
`DynamicSearch.places` ranks.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.search import OFF, SEARCHES, Leavers, ThresholdSearch


@SEARCHES.register("dynamic")
class DynamicSearch(ThresholdSearch):
    """Threshold search by dynamic programming; arguments as for `ThresholdSearch`."""

    places = 32

    def best(self, price: float, starts: Sequence[Leavers]) -> Leavers:
        return self.solve(price, self.empty())[0]

    def solve(self, price: float, start: Leavers) -> tuple[Leavers, float]:
        """The best setting by dynamic programming, wherever one would begin; and its objective."""
        early, last = self.exits - 1, self.exits - 1
        ahead = price * (self.body.sum() - np.cumsum(self.body) + self.head[last])  # after exit k
        base = self.worth[last].mean() - price * (self.body.sum() + self.head[last])
        settings: list[Leavers] = [(OFF,) * early]
        values = [np.array([base])]
        waiting = [np.ones((1, self.count), dtype=np.float32)]
        locked = max(self.locked, default=-1)
        for k in range(early):
            gain = (self.worth[k] - self.worth[last] + ahead[k]) / self.count
            before = np.concatenate(values)  # (P,)
            there = np.concatenate(waiting)  # (P, N)
            gains = np.cumsum(_by_cell(there, gain, self.cells[k], len(self.steps[k])), axis=1)
            paid = price * self.head[k] * there.mean(axis=1)
            # Column 0: on, but nobody leaves. Only an exit that may not be off is worth that.
            total = np.concatenate([np.zeros((len(before), 1)), gains], axis=1)
            total += (before - paid)[:, None]  # (P, T+1)
            first = 0 if k in self.locked else 1
            origin = total.argmax(axis=0)[first:]
            chosen = [0, *self.steps[k].tolist()][first:]
            made = [_ending(settings[p], k, m) for p, m in zip(origin, chosen, strict=True)]
            stays = [self.cells[k] >= cell for cell in range(first, len(self.steps[k]) + 1)]
            grown = there[origin] * np.stack(stays)
            if k <= locked:  # nothing may skip a locked exit
                settings, values, waiting = [], [], []
            settings += made
            values.append(total[origin, range(first, total.shape[1])])
            waiting.append(grown.astype(np.float32))
        found = np.concatenate(values)
        return settings[int(found.argmax())], float(found.max())


def _by_cell(
    there: NDArray[np.float32], gain: NDArray[np.float64], cells: NDArray[np.intp], count: int
) -> NDArray[np.float64]:
    """Sum of gains (N,) per threshold cell for each set of waiting samples (P, N): (P, cells)."""
    onto = np.zeros((len(cells), count), dtype=np.float32)
    onto[np.arange(len(cells)), cells] = gain
    return np.asarray(there @ onto, dtype=np.float64)


def _ending(setting: Leavers, k: int, leavers: int) -> Leavers:
    return (*setting[:k], leavers, *setting[k + 1 :])
