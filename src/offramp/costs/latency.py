"""Measured time per segment and head: a head can cost twice its share of MACs."""

from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from offramp.costs.clock import timed
from offramp.costs.environment import describe_hardware
from offramp.costs.evaluating import evaluating
from offramp.costs.table import CostTable
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.model import MultiExitModel
    from offramp.segments import Segment

State = tuple[Tensor, ...]


def latency_table(
    model: "MultiExitModel",
    images: Tensor,
    batch_sizes: Iterable[int] = (1, 8, 64),
    *,
    repeats: int = 15,
    warmup: int = 3,
) -> dict[int, CostTable]:
    """Median milliseconds per image of every body and head, for each batch size.

    One round runs the whole chain, taking the time before and after every head, and then the
    unmodified backbone: pieces are timed in the order and with the caches they meet in use, and a
    slow moment of the machine falls on all of them alike. A head's time holds the decision behind
    it: softmax, maximum, comparison, and waiting for the answer.

    Args:
        images: preprocessed images (N, 3, H, W), repeated where a batch needs more.
        batch_sizes: images per batch.
        repeats: rounds the medians are taken over, after ``warmup`` unmeasured ones.

    Raises:
        OfframpError: when there are no images or a batch size is below 1.
    """
    if not len(images):
        raise OfframpError("measuring latency needs at least one image")
    tables = {}
    with evaluating(model), torch.inference_mode():
        segments = model.segments(inference=True)
        for segment in segments:
            segment.eval()
        for size in batch_sizes:
            if size < 1:
                raise OfframpError(f"batch size {size}, but it must be at least 1")
            batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
            rounds = [_round(model, segments, batch) for _ in range(warmup + repeats)][warmup:]
            tables[size] = CostTable(
                unit="ms",
                body=_medians(r.body for r in rounds),
                head=_medians(r.head for r in rounds),
                full=median(r.full for r in rounds),
                meta={"batch_size": size, "repeats": repeats, "hardware": describe_hardware()},
            )
    return tables


class Round(NamedTuple):
    """Milliseconds per image of each exit's body and head, and of the unmodified backbone."""

    body: list[float]
    head: list[float]
    full: float


def _round(model: "MultiExitModel", segments: "list[Segment]", images: Tensor) -> Round:
    body, head = [], []
    flow: State = (images,)
    for segment in segments:
        took, state = timed(segment.body, *flow, device=images.device)
        body.append(took / len(images))
        took, flow = timed(_read_and_decide, segment, state, device=images.device)
        head.append(took / len(images))
    took, _ = timed(model.backbone, images, device=images.device)
    return Round(body, head, took / len(images))


def _read_and_decide(segment: "Segment", state: State) -> State:
    """Run a head and, behind an early one, the decision a threshold policy makes."""
    state, outputs = segment.read(*state)
    if segment.head is not None:
        bool((outputs[0].softmax(-1).amax(-1) > 2).any())  # waits for the device, as a runner does
    return state


def _medians(rounds: Iterable[list[float]]) -> tuple[float, ...]:
    return tuple(median(times) for times in zip(*rounds, strict=True))
