"""Time several models in one run: they take turns, so a slow moment falls on all of them alike."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offramp.costs.clock import timed
from offramp.errors import OfframpError


@dataclass(frozen=True)
class Contender:
    """Something that answers batches of images, with the batches of one turn: (B, C, H, W) each."""

    call: Callable[[Tensor], Any]
    batches: Sequence[Tensor]

    @property
    def images(self) -> int:
        return sum(len(batch) for batch in self.batches)


def contest(
    contenders: Mapping[str, Contender],
    *,
    rounds: int = 7,
    warmup: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds per image of every contender in every round.

    In a round each contender has one turn, in an order that changes from round to round. A turn is
    one unmeasured batch, which brings back the caches that others have used, then all its batches.

    Args:
        rounds: measured rounds, after ``warmup`` others.
        advance: called after every turn.

    Raises:
        OfframpError: when a contender has no images.
    """
    for name, contender in contenders.items():
        if not contender.images:
            raise OfframpError(f"{name}: timing needs at least one batch of images")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name in random.Random(turn).sample(list(contenders), len(contenders)):
            contender = contenders[name]
            contender.call(contender.batches[0])
            took, _ = timed(_answer_all, contender, device=contender.batches[0].device)
            times[name].append(took / contender.images)
            advance()
    return {name: taken[warmup:] for name, taken in times.items()}


def _answer_all(contender: Contender) -> None:
    for batch in contender.batches:
        contender.call(batch)
