"""The settings of cascades that no other beats in both cost and right answers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.cascades.pool import Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Settings of one cascade: what each costs, how many it gets right, and its leavers.

    ``leavers`` (S, stages - 1): how many of all samples exceed each threshold.
    """

    members: tuple[int, ...]
    average: bool
    cost: Floats
    right: Ints
    leavers: Ints

    def take(self, rows: Ints) -> "Block":
        """Some of the settings; the others can be forgotten."""
        return Block(
            self.members, self.average, self.cost[rows], self.right[rows], self.leavers[rows]
        )


class Front:
    """The settings nobody beats, growing block by block."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._cost, self._right = np.empty(0), np.empty(0, dtype=np.int64)
        self._source, self._row = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def add(self, block: Block) -> None:
        if len(self._cost):  # most settings are beaten by what is known
            known = np.searchsorted(self._cost, block.cost, side="right") - 1
            rows = np.flatnonzero((known < 0) | (block.right > self._right[known]))
        else:
            rows = np.arange(len(block.cost))
        if not len(rows):
            return
        cost = np.concatenate([self._cost, block.cost[rows]])
        right = np.concatenate([self._right, block.right[rows]])
        source = np.concatenate([self._source, np.full(len(rows), len(self._blocks))])
        row = np.concatenate([self._row, np.arange(len(rows))])
        self._blocks.append(block.take(rows))
        order = np.lexsort((-right, cost))
        most = np.maximum.accumulate(right[order])
        kept = order[np.diff(most, prepend=-1) > 0]
        self._cost, self._right = cost[kept], right[kept]
        self._source, self._row = source[kept], row[kept]

    def points(self) -> Iterator[tuple[tuple[int, ...], bool, Ints]]:
        """Members, whether averaged, and leavers of every setting, cheapest first."""
        for source, row in zip(self._source, self._row, strict=True):
            block = self._blocks[source]
            yield block.members, block.average, block.leavers[row]
