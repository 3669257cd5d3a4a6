"""CUDA graphs: every segment recorded once per batch size, then replayed by a single launch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.engines.engine import (
    CompiledSegment,
    Engine,
    EngineOptions,
    Program,
    register_engine,
)
from offramp.runtime.exporting import refusal
from offramp.runtime.parts import Layout, Part
from offramp.runtime.pieces import covering, in_pieces, powers_of_two

LARGEST = 256
"""Samples of the largest graph; more are run in several calls."""
WARMUP = 3  # calls before recording: libraries choose kernels and allocate what they keep

Tensors = tuple[Tensor, ...]


class Graph(NamedTuple):
    """A recorded call: ``replay`` reads ``inputs`` where they lie and writes ``outputs`` there."""

    inputs: Tensors
    outputs: Tensors
    replay: Callable[[], None]


Capture = Callable[[Part, Tensors], Graph]
"""Record a part on inputs that stay where they are."""


@register_engine("cuda-graphs")
class CudaGraphsEngine(Engine):
    """CUDA graphs on an NVIDIA GPU; ``device="cpu"`` rehearses the same buffers without graphs.

    Batches are copied into buffers of the next power of two. A batch size is recorded for all
    segments when it first comes; with ``batch_size`` all sizes up to it beforehand. A segment reads
    what the one before wrote in the very same memory, so where nobody leaves nothing is copied.
    """

    name = "cuda-graphs"
    precisions = ("float32", "bfloat16", "float16")

    def __init__(self, options: EngineOptions | None = None) -> None:
        super().__init__(options)
        device = self.options.device
        rehearsed = device is not None and device.type == "cpu"
        if not rehearsed and not torch.cuda.is_available():
            raise OfframpError(
                "engine 'cuda-graphs' needs an NVIDIA GPU, and torch finds none here "
                "(use 'torch-compile', or device='cpu' to rehearse it without graphs)"
            )
        if not rehearsed and device is not None and device.type != "cuda":
            raise OfframpError(f"engine 'cuda-graphs' runs on device 'cuda', not '{device}'")

    @property
    def device(self) -> torch.device:
        return self.options.device or torch.device("cuda", torch.cuda.current_device())

    @property
    def part_dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    def prepare(self, parts: Sequence[Part]) -> Program:
        capture: Capture = rehearse if self.device.type == "cpu" else CudaCapture(self.device)
        sizes = powers_of_two(self.options.batch_size or LARGEST)
        recordings = Recordings(parts, capture)
        if self.options.batch_size is not None:
            for size in reversed(sizes):  # smaller ones then fit into the memory of larger ones
                recordings.at(size)
        segments = [
            CompiledSegment(part.layout, ReplayedCall(recordings, k, part.layout, sizes))
            for k, part in enumerate(parts)
        ]
        return Program(
            segments, self.device, self.part_dtype, self.precision, borrowed=True, sizes=sizes
        )


class Recordings:
    """Graphs of all segments, by batch size."""

    def __init__(self, parts: Sequence[Part], capture: Capture) -> None:
        self._parts, self._capture = parts, capture
        self._graphs: dict[int, list[Graph]] = {}

    def at(self, size: int) -> list[Graph]:
        if size not in self._graphs:
            with torch.inference_mode():
                self._graphs[size] = self._record(size)
        return self._graphs[size]

    def _record(self, size: int) -> list[Graph]:
        example = self._parts[0].example
        rows = torch.arange(size, device=example[0].device) % len(example[0])
        inputs = tuple(tensor.index_select(0, rows) for tensor in example)
        graphs = []
        for part in self._parts:
            try:
                graphs.append(self._capture(part, inputs))
            except Exception as error:
                raise refusal(part, f"a CUDA graph (batch {size})", error) from error
            graphs[-1].replay()  # the next part is recorded on real numbers
            inputs = graphs[-1].outputs[: len(part.layout.flow)]
        return graphs


class ReplayedCall:
    """One segment: a batch is copied to where its graph reads, which is then replayed.

    What it returns for the next segment is memory of the graph, valid until any segment runs again.
    """

    def __init__(
        self, recordings: Recordings, segment: int, layout: Layout, sizes: Sequence[int]
    ) -> None:
        self._recordings, self._segment, self._sizes = recordings, segment, sizes
        self._width = len(layout.flow)

    def __call__(self, *inputs: Tensor) -> Tensors:
        with torch.inference_mode():
            sizes = covering(len(inputs[0]), self._sizes)
            return in_pieces(self._replay, inputs, sizes, filled=False)

    def _replay(self, *inputs: Tensor) -> Tensors:
        n = len(inputs[0])
        (size,) = covering(n, self._sizes)
        graph = self._recordings.at(size)[self._segment]
        for held, given in zip(graph.inputs, inputs, strict=True):
            if held.data_ptr() != given.data_ptr():  # else the segment before wrote it here
                held[:n].copy_(given)
        graph.replay()  # rows from n on hold older samples: nobody reads what becomes of them
        returned = tuple(tensor[:n] for tensor in graph.outputs)
        says = (tensor.clone() for tensor in returned[self._width :])
        return (*returned[: self._width], *says)


class CudaCapture:
    """Records parts as CUDA graphs that share one memory pool.

    A replay may therefore write where graphs recorded later have their outputs; never where its own
    inputs lie, which are outputs of a graph recorded earlier.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, part: Part, inputs: Tensors) -> Graph:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(WARMUP):
                    part(*inputs)
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = part(*inputs)
        return Graph(inputs, outputs, graph.replay)


def rehearse(part: Part, inputs: Tensors) -> Graph:
    """A stand-in on CPU: a call whose results are copied to where the first ones were."""
    outputs = part(*inputs)

    def replay() -> None:
        for held, made in zip(outputs, part(*inputs), strict=True):
            held.copy_(made)

    return Graph(inputs, outputs, replay)
