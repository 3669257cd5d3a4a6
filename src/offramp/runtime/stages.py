"""One segment and the decision behind it, for a batch of any size: where compaction happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.runtime.batching import BatchPlan
from offramp.runtime.engines.engine import CompiledSegment, Program
from offramp.runtime.pieces import in_pieces

Tensors = tuple[Tensor, ...]


class Flow(NamedTuple):
    """Samples under way: their places (n,) int64 (None: 0 … n−1), and what the next part takes.

    ``gone`` (n,) bool marks those that have been answered and ride along (None: nobody), ``riders``
    is how many they are. ``said`` (n, C) is what the exit before would answer, kept on request.
    """

    rows: Tensor | None
    tensors: Tensors
    gone: Tensor | None = None
    riders: int = 0
    said: Tensor | None = None

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
        plan: batch sizes to run, and whether compaction pays; None: every size as it is, always.
        keep: hand out flows of samples under way alone, which stay valid while the same segment
            runs again.
    """

    def __init__(
        self, program: Program, plan: BatchPlan | None = None, *, keep: bool = False
    ) -> None:
        self.program = program
        self.segments: Sequence[CompiledSegment] = program.segments
        self.plan = plan
        self._keep, self._borrowed = keep, program.borrowed
        self._fills = bool(program.sizes)
        exits = tuple(segment.exit_index for segment in self.segments)
        self.executed = Executed(exits, [0] * len(exits), [0] * len(exits))

    def __len__(self) -> int:
        return len(self.segments)

    def advance(
        self, stage: int, flow: Flow, *, said: bool = False
    ) -> tuple[Flow | None, Departure | None]:
        """Run segment ``stage``: those who go on (None: nobody), those who leave (None: nobody).

        ``said`` keeps what the exit would answer for those who go on, so that `cut` can end here.
        """
        layout = self.segments[stage].layout
        n, alive = flow.samples, flow.samples - flow.riders
        returned = self._run(stage, flow.tensors)
        if not layout.flow:
            return None, _last(flow, layout.exit_index, returned[0], alive)
        *outputs, answer, stop, _ = returned
        tensors, rank = tuple(outputs), stop  # 0 goes on, 1 leaves, 2 had left before
        if flow.gone is not None:
            stop = stop.bool() & ~flow.gone
            rank = stop.byte() + 2 * flow.gone
        leaving = int(stop.item() if n == 1 else stop.sum().item())  # the one wait
        heard = answer if said else None
        if leaving == 0 and not flow.riders:
            return Flow(flow.rows, self._own(tensors), said=heard), None
        if leaving == n:
            return None, Departure(flow.rows, layout.exit_index, answer)
        order = rank.argsort(stable=True)  # so without another wait
        stay = alive - leaving
        departure = None
        if leaving:
            left = order[stay:alive]
            answers = answer.index_select(0, left)
            departure = Departure(_rows(flow.rows, left), layout.exit_index, answers)
        if not stay:
            return None, departure
        size = stay if self.plan is None or self._keep else self.plan.keep(stage, n, stay)
        if size == n:
            return Flow(flow.rows, self._own(tensors), rank.bool(), n - stay, heard), departure
        kept = order[:size]
        gone = None if size == stay else torch.arange(size, device=kept.device) >= stay
        heard = None if heard is None else heard.index_select(0, kept)
        rows, tensors = _rows(flow.rows, kept), take(tensors, kept)
        return Flow(rows, tensors, gone, size - stay, heard), departure

    def cut(self, stage: int, flow: Flow) -> Departure:
        """Everybody who went on after segment ``stage`` leaves with what its exit said."""
        assert flow.said is not None
        exit_index = self.segments[stage].layout.exit_index
        return _last(flow, exit_index, flow.said, flow.samples - flow.riders)

    def _run(self, stage: int, tensors: Tensors) -> Tensors:
        call, n = self.segments[stage].call, len(tensors[0])
        sizes = (n,) if self.plan is None else self.plan.calls(stage, n)
        self.executed.calls[stage] += len(sizes)
        self.executed.samples[stage] += n
        if len(sizes) > 1 and stage and self._borrowed:  # the first call may overwrite the rest
            tensors = _clone(tensors)
        return in_pieces(call, tensors, sizes, filled=not self._fills)

    def _own(self, tensors: Tensors) -> Tensors:
        return _clone(tensors) if self._keep and self._borrowed else tensors


def _last(flow: Flow, exit_index: int, answer: Tensor, alive: int) -> Departure:
    """Everybody who is under way leaves."""
    if flow.gone is None:
        return Departure(flow.rows, exit_index, answer)
    left = flow.gone.byte().argsort(stable=True)[:alive]
    return Departure(_rows(flow.rows, left), exit_index, answer.index_select(0, left))


def _clone(tensors: Tensors) -> Tensors:
    return tuple(tensor.clone() for tensor in tensors)


def take(tensors: Tensors, index: Tensor) -> Tensors:
    """Samples ``index`` of batch-first tensors."""
    return tuple(tensor.index_select(0, index) for tensor in tensors)


def _rows(rows: Tensor | None, index: Tensor) -> Tensor:
    return index if rows is None else rows.index_select(0, index)
