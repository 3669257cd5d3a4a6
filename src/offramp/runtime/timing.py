"""Time every segment of a program at several batch sizes, on samples that really get there."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.costs.clock import timed
from offramp.costs.environment import describe_hardware
from offramp.errors import OfframpError
from offramp.runtime.batching import BatchTimes, SegmentTimes
from offramp.runtime.engines.engine import CompiledSegment, Program
from offramp.runtime.hosting import hosting
from offramp.runtime.stages import Flow, Stages, take

SIZES = (1, 2, 4, 8, 16, 32, 64)

Tensors = tuple[Tensor, ...]
Memory = Callable[[int], Tensors]
"""How many samples → the policy's fresh memory."""


def measure_program(
    program: Program,
    images: Tensor,
    sizes: Sequence[int] = SIZES,
    *,
    engine: str,
    memory: Memory = lambda batch: (),
    rounds: int = 7,
    warmup: int = 2,
    quantile: float = 0.5,
) -> BatchTimes:
    """Milliseconds of every segment, and of gathering its input, for each batch size.

    All images go through the program once; those who come to a segment are what it is timed on,
    repeated where a batch needs more. In a round every size has its turn, in changing order.

    Args:
        program: compiled segments.
        images: real, preprocessed images (N, 3, H, W); a few hundred for an honest ``reach``.
        sizes: samples per call.
        engine: its name, for the table.
        memory: makes the policy's memory of a batch.
        rounds: measured rounds, after ``warmup`` others.
        quantile: of the rounds' times; the median for plans, a high one for deadlines.

    Raises:
        OfframpError: when there are no images, a batch size is below 1, or the quantile is none.
    """
    if not 0 <= quantile <= 1:
        raise OfframpError(f"quantile = {quantile:g}, but it must be between 0 and 1")
    sizes = sorted(set(sizes))
    if not len(images):
        raise OfframpError("measuring batch sizes needs at least one image")
    if not sizes or sizes[0] < 1:
        raise OfframpError(f"batch sizes {sizes}, but they must be at least 1, and one at least")
    with hosting(program):
        images = images.to(device=program.device, dtype=program.dtype)
        flows, reach = arriving(program, images, memory, sizes[-1])
        turns = [_round(program, flows, sizes, turn) for turn in range(warmup + rounds)][warmup:]
    segments = [
        SegmentTimes(
            exit_index=segment.exit_index,
            ms=_quantiles(turns, sizes, k, 0, quantile),
            copy_ms=_quantiles(turns, sizes, k, 1, quantile),
            reach=reach[k],
        )
        for k, segment in enumerate(program.segments)
    ]
    return BatchTimes(
        engine=engine,
        precision=program.precision,
        fixed=bool(program.sizes),
        segments=tuple(segments),
        meta={
            "images": len(images),
            "rounds": rounds,
            "quantile": quantile,
            "hardware": describe_hardware(),
        },
    )


def _quantiles(
    turns: Sequence[dict[int, list[tuple[float, float]]]],
    sizes: Sequence[int],
    segment: int,
    which: int,
    quantile: float,
) -> dict[int, float]:
    """A quantile over rounds of one segment's times (``which`` 0) or copies (1), by size."""
    return {
        size: float(np.quantile([turn[size][segment][which] for turn in turns], quantile))
        for size in sizes
    }


def arriving(
    program: Program, images: Tensor, memory: Memory, most: int
) -> tuple[list[Tensors], list[float]]:
    """What each segment takes, for up to ``most`` samples that come there, and their share.

    Where nobody comes, it is what the segment before makes of those who came to that one.
    """
    stages = Stages(program, keep=True)
    found: list[list[Tensors]] = [[] for _ in program.segments]
    counts = [0] * len(found)
    for batch in images.split(most):
        flow: Flow | None = Flow(None, (batch, *memory(len(batch))))
        for k in range(len(stages)):
            if flow is None:
                break
            if counts[k] < most:
                found[k].append(tuple(tensor[: most - counts[k]] for tensor in flow.tensors))
            counts[k] += flow.samples
            flow, _ = stages.advance(k, flow)
    flows: list[Tensors] = []
    for k, chunks in enumerate(found):
        if chunks:
            flows.append(tuple(torch.cat(column) for column in zip(*chunks, strict=True)))
        else:
            before = program.segments[k - 1]
            returned = before.call(*flows[-1])[: len(before.layout.flow)]
            flows.append(tuple(tensor.clone() for tensor in returned))
    return flows, [count / len(images) for count in counts]


def _round(
    program: Program, flows: list[Tensors], sizes: Sequence[int], turn: int
) -> dict[int, list[tuple[float, float]]]:
    """Milliseconds of every segment and of gathering its input: (segment, copy) by size."""
    took: dict[int, list[tuple[float, float]]] = {}
    for size in random.Random(turn).sample(list(sizes), len(sizes)):
        took[size] = []
        for segment, flow in zip(program.segments, flows, strict=True):
            rows = torch.arange(size, device=program.device) % len(flow[0])
            copied, inputs = timed(take, flow, rows, device=program.device)
            ran, _ = timed(decided, segment, inputs, device=program.device)
            took[size].append((ran, copied))
    return took


def decided(segment: CompiledSegment, inputs: Tensors) -> Any:
    """One segment, and reading how many stop, as a runner does."""
    returned = segment.call(*inputs)
    says = segment.layout.says
    if "stop" in says:
        return returned[len(segment.layout.flow) + says.index("stop")].sum().item()
    return returned
