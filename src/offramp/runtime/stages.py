"""One segment and the decision behind it, for a batch of any size: where compaction happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from offramp.runtime.engines.engine import CompiledSegment, Program

Tensors = tuple[Tensor, ...]


class Flow(NamedTuple):
    """Samples under way: their places (n,) int64 (None: 0 … n−1), and what the next part takes."""

    rows: Tensor | None
    tensors: Tensors

    @property
    def samples(self) -> int:
        return len(self.tensors[0])


class Departure(NamedTuple):
    """Samples that leave: places (None: everyone there was), exit among all, answers (n, C)."""

    rows: Tensor | None
    exit_index: int
    answer: Tensor


@dataclass
class Executed:
    """What really ran, per segment: calls and samples since the runner was made or reset."""

    exits: tuple[int, ...]
    calls: list[int]
    samples: list[int]

    def reset(self) -> None:
        self.calls[:] = [0] * len(self.exits)
        self.samples[:] = [0] * len(self.exits)


class Stages:
    """The segments of a program: `advance` runs one and splits the batch.

    The device is waited for once per segment (how many stop?). Nobody stops: nothing is copied.
    Everybody stops: nothing further runs.

    Args:
        program: what to run.
        keep: hand out flows that stay valid while the same segment runs again.
    """

    def __init__(self, program: Program, *, keep: bool = False) -> None:
        self.segments: Sequence[CompiledSegment] = program.segments
        self._copy = keep and program.borrowed
        exits = tuple(segment.exit_index for segment in self.segments)
        self.executed = Executed(exits, [0] * len(exits), [0] * len(exits))

    def __len__(self) -> int:
        return len(self.segments)

    def advance(self, stage: int, flow: Flow) -> tuple[Flow | None, Departure | None]:
        """Run segment ``stage``: those who go on (None: nobody), those who leave (None: nobody)."""
        layout, call = self.segments[stage]
        n = flow.samples
        self.executed.calls[stage] += 1
        self.executed.samples[stage] += n
        returned = call(*flow.tensors)
        if not layout.flow:
            return None, Departure(flow.rows, layout.exit_index, returned[0])
        *tensors, answer, stop, _ = returned
        leaving = int(stop.item() if n == 1 else stop.sum().item())  # the one wait
        if leaving == 0:
            onward = tuple(t.clone() for t in tensors) if self._copy else tuple(tensors)
            return Flow(flow.rows, onward), None
        if leaving == n:
            return None, Departure(flow.rows, layout.exit_index, answer)
        order = stop.argsort(stable=True)  # False before True, so without another wait
        kept, left = order[: n - leaving], order[n - leaving :]
        departure = Departure(
            _rows(flow.rows, left), layout.exit_index, answer.index_select(0, left)
        )
        return Flow(_rows(flow.rows, kept), take(tuple(tensors), kept)), departure


def take(tensors: Tensors, index: Tensor) -> Tensors:
    """Samples ``index`` of batch-first tensors."""
    return tuple(tensor.index_select(0, index) for tensor in tensors)


def _rows(rows: Tensor | None, index: Tensor) -> Tensor:
    return index if rows is None else rows.index_select(0, index)
