"""Throughput mode: survivors of several batches are regrouped, so that deep segments run full."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.runtime.batching import BatchPlan
from offramp.runtime.hosting import hosting
from offramp.runtime.inputs import InputCheck
from offramp.runtime.stages import Departure, Flow, Stages

Start = Callable[[int, Tensor | None], tuple[Tensor, ...]]
"""How many samples, their ids → the policy's fresh memory."""


class Answers(NamedTuple):
    """Answers for one input batch in order: logits (n, C), exit (n,)."""

    logits: Tensor
    exit: Tensor


class Queue:
    """Samples waiting before one segment, in order of arrival."""

    def __init__(self) -> None:
        self._chunks: deque[Flow] = deque()
        self.size = 0

    def push(self, flow: Flow) -> None:
        self._chunks.append(flow)
        self.size += flow.samples

    def own_last(self) -> None:
        """Copy what came last and waits: the tensor it is part of may then be freed or reused."""
        if self._chunks:
            rows, tensors, *_ = self._chunks.pop()
            self._chunks.append(Flow(rows, tuple(tensor.clone() for tensor in tensors)))

    def take(self, count: int) -> Flow:
        """The ``count`` oldest samples as one flow; copies only where chunks are joined."""
        chosen: list[Flow] = []
        need = count
        while need:
            chunk = self._chunks.popleft()
            if chunk.samples > need:
                self._chunks.appendleft(_slice(chunk, need, chunk.samples))
                chunk = _slice(chunk, 0, need)
            chosen.append(chunk)
            need -= chunk.samples
        self.size -= count
        return chosen[0] if len(chosen) == 1 else _concatenate(chosen)


class Collector:
    """Puts answers, which come in any order, back into the order and sizes of the input."""

    def __init__(self, num_classes: int, device: torch.device, dtype: torch.dtype) -> None:
        self._sizes: deque[int] = deque()
        self._first = 0  # stream position of the buffers' row 0
        self._exit = torch.empty(0, dtype=torch.int64, device=device)
        self._logits = torch.empty(0, num_classes, dtype=dtype, device=device)

    @property
    def waiting(self) -> int:
        """Samples accepted but not handed out."""
        return len(self._exit)

    def expect(self, count: int) -> None:
        """Make room for the next ``count`` samples of the input."""
        self._sizes.append(count)
        self._exit = torch.cat([self._exit, self._exit.new_full((count,), -1)])
        room = self._logits.new_empty(count, self._logits.shape[1])
        self._logits = torch.cat([self._logits, room])

    def fill(self, departure: Departure) -> None:
        assert departure.rows is not None
        places = departure.rows - self._first
        self._exit.index_fill_(0, places, departure.exit_index)
        self._logits.index_copy_(0, places, departure.answer.to(self._logits.dtype))

    def ready(self) -> Iterator[Answers]:
        """Complete batches at the head of the line."""
        while self._sizes and not (self._exit[: self._sizes[0]] < 0).any().item():
            n = self._sizes.popleft()
            answers = Answers(self._logits[:n].clone(), self._exit[:n].clone())
            self._logits, self._exit = self._logits[n:], self._exit[n:]
            self._first += n
            yield answers


class Scheduler:
    """Runs the deepest full queue first; partial batches run only when nothing else can.

    A queue is full with ``batch_size`` samples, or as soon as a plan says that waiting for more
    would not pay. So at most ``batch_size`` − 1 samples wait before each segment, and memory stays
    bounded; answers wait for the ones before them, at most ``max_waiting`` before all queues are
    emptied.
    """

    def __init__(
        self,
        stages: Stages,
        check: InputCheck,
        start: Start,
        num_classes: int,
        batch_size: int,
        max_waiting: int,
    ) -> None:
        self.stages, self.check, self.start = stages, check, start
        self.batch_size, self.max_waiting = batch_size, max_waiting
        self.plan: BatchPlan | None = stages.plan
        self.sizes = [
            batch_size if self.plan is None else self.plan.best_size(stage, batch_size)
            for stage in range(len(stages))
        ]
        self.queues = [Queue() for _ in range(len(stages))]
        self.collector = Collector(num_classes, check.device, check.dtype)

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Answers]:
        arrived = 0
        for images in batches:
            with hosting(self.stages.program):  # never around a yield: the caller's mode is its own
                self._accept(self.check(images, first=arrived), arrived)
                arrived += len(images)
                self._run(partial=False)
                if self.collector.waiting > self.max_waiting:
                    self._run(partial=True)
                self.queues[0].own_last()
                done = list(self.collector.ready())
            del images
            yield from done
        with hosting(self.stages.program):
            self._run(partial=True)
            done = list(self.collector.ready())
        yield from done

    def _accept(self, images: Tensor, first: int) -> None:
        n = len(images)
        self.collector.expect(n)
        if n:
            ids = torch.arange(first, first + n, device=images.device)
            self.queues[0].push(Flow(ids, (images, *self.start(n, ids))))

    def _run(self, *, partial: bool) -> None:
        while (stage := self._next(partial=partial)) is not None:
            queue = self.queues[stage]
            batch = queue.take(min(queue.size, self.sizes[stage]))
            flow, departure = self.stages.advance(stage, batch)
            if departure is not None:
                self.collector.fill(departure)
            if flow is not None:
                self.queues[stage + 1].push(flow)

    def _next(self, *, partial: bool) -> int | None:
        """Deepest full queue; else, when partial batches may run, the shallowest with samples."""
        sizes = [queue.size for queue in self.queues]
        full = [stage for stage, size in enumerate(sizes) if size and self._full(stage, size)]
        if full:
            return full[-1]
        some = [stage for stage, size in enumerate(sizes) if size]
        return some[0] if partial and some else None

    def _full(self, stage: int, size: int) -> bool:
        if self.plan is None:
            return size >= self.batch_size
        return not self.plan.waits(stage, size, self.batch_size)


def _slice(flow: Flow, start: int, stop: int) -> Flow:
    rows = None if flow.rows is None else flow.rows[start:stop]
    return Flow(rows, tuple(tensor[start:stop] for tensor in flow.tensors))


def _concatenate(flows: list[Flow]) -> Flow:
    rows = [flow.rows for flow in flows if flow.rows is not None]
    columns = zip(*(flow.tensors for flow in flows), strict=True)
    return Flow(torch.cat(rows), tuple(torch.cat(parts) for parts in columns))
