"""One segment and the decision behind it, for a batch of any size: where compaction happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.policies import Memory, Policy, ScalarPolicy
from offramp.runtime.engines.engine import CompiledSegment

State = tuple[Tensor, ...]


class Flow(NamedTuple):
    """Samples under way: their places (n,) int64 (None: 0 … n−1), state and policy memory."""

    rows: Tensor | None
    state: State
    memory: Memory

    @property
    def samples(self) -> int:
        return len(self.state[0])


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
    """The segments of a runner with one policy: `advance` runs one and splits the batch.

    The device is waited for once per segment (how many stop?). Nobody stops: nothing is copied.
    Everybody stops: nothing further runs.
    """

    def __init__(self, segments: Sequence[CompiledSegment], policy: Policy | None) -> None:
        self.segments = list(segments)
        self.policy = policy
        # A scalar policy answers with the exit's logits: at the last exit its reading is idle work.
        self._read_last = policy is not None and type(policy).step is not ScalarPolicy.step
        exits = tuple(segment.exit_index for segment in self.segments)
        self.executed = Executed(exits, [0] * len(exits), [0] * len(exits))

    def __len__(self) -> int:
        return len(self.segments)

    def start(self, batch: int, ids: Tensor | None, device: torch.device) -> Memory:
        return () if self.policy is None else self.policy.start(batch, ids=ids, device=device)

    def advance(self, stage: int, flow: Flow) -> tuple[Flow | None, Departure | None]:
        """Run segment ``stage``: those who go on (None: nobody), those who leave (None: nobody)."""
        k, call = self.segments[stage]
        n = flow.samples
        self.executed.calls[stage] += 1
        self.executed.samples[stage] += n
        state, outputs = call(*flow.state)
        if stage == len(self.segments) - 1:
            answer = outputs.logits
            if self._read_last and self.policy is not None:
                _, answer, _ = self.policy.step(k, outputs, flow.memory)
            return None, Departure(flow.rows, k, answer)
        assert self.policy is not None
        stop, answer, memory = self.policy.step(k, outputs, flow.memory)
        leaving = int(stop.item() if n == 1 else stop.sum().item())  # the one wait
        if leaving == 0:
            return Flow(flow.rows, state, memory), None
        if leaving == n:
            return None, Departure(flow.rows, k, answer)
        order = stop.argsort(stable=True)  # False before True, so without another wait
        kept, left = order[: n - leaving], order[n - leaving :]
        departure = Departure(_rows(flow.rows, left), k, answer.index_select(0, left))
        return Flow(_rows(flow.rows, kept), take(state, kept), take(memory, kept)), departure


def take(tensors: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    """Samples ``index`` of batch-first tensors."""
    return tuple(tensor.index_select(0, index) for tensor in tensors)


def _rows(rows: Tensor | None, index: Tensor) -> Tensor:
    return index if rows is None else rows.index_select(0, index)
