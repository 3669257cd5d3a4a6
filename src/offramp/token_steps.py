"""How far to reduce tokens: time goes down in steps, so prune to a step's edge, or not at all.

A ratio in tokens is no ratio in time: engines work in tiles, small batches are bound by launches,
and choosing tokens costs time itself. So candidates are measured on the engine and at the batch
size they are for, in turns with the untouched model.
"""

import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from offramp.chains.chain import Chain
from offramp.chains.shapes import state_shapes
from offramp.costs.clock import timed
from offramp.reducers import ReducerSpec, reduced
from offramp.runtime.engines import EngineOptions
from offramp.runtime.static import static_program


class Timed(NamedTuple):
    """A candidate's time on an engine at a batch size; no spec: the untouched model.

    Attributes:
        tokens: computed in all blocks together.
        ms: median milliseconds per batch.
        ratio: median over rounds of its time over the untouched model's in the same round.
    """

    spec: ReducerSpec | None
    tokens: int
    ms: float
    ratio: float


class Advice(NamedTuple):
    """What to run: a reducer, or none where none is worth it, and why."""

    spec: ReducerSpec | None
    ratio: float
    reason: str


def measure_reducers(
    links: Chain,
    specs: Sequence[ReducerSpec],
    images: Tensor,
    *,
    engine: str = "torch",
    options: EngineOptions | None = None,
    rounds: int = 15,
    warmup: int = 3,
) -> list[Timed]:
    """Time the untouched chain and each candidate on one batch of images, in changing order.

    Args:
        links: the chain without a reducer.
        images: one batch (B, 3, H, W).
        rounds: measured, after ``warmup`` others.

    Returns:
        the untouched model first, then the candidates in their order.
    """
    chains = [links, *(reduced(links, spec) for spec in specs)]
    options = options or EngineOptions(batch_size=len(images))
    programs = [static_program(c, c.image_size, engine, options=options) for c in chains]
    return timings(chains, specs, time_programs(programs, images, rounds=rounds, warmup=warmup))


def time_programs(
    programs: Sequence[Callable[[Tensor], Tensor]],
    images: Tensor,
    *,
    rounds: int = 15,
    warmup: int = 3,
) -> list[list[float]]:
    """Milliseconds of every program in every measured round, in changing order."""
    took: list[list[float]] = []
    for turn in range(warmup + rounds):
        row = [0.0] * len(programs)
        for k in random.Random(turn).sample(range(len(programs)), len(programs)):
            row[k] = timed(programs[k], images, device=images.device)[0]
        took.append(row)
    return took[warmup:]


def timings(
    chains: Sequence[Chain], specs: Sequence[ReducerSpec], took: Sequence[Sequence[float]]
) -> list[Timed]:
    """What the rounds of `time_programs` say of the untouched chain and its candidates."""
    return [
        Timed(
            spec=None if k == 0 else specs[k - 1],
            tokens=token_count(chain),
            ms=median(row[k] for row in took),
            ratio=median(row[k] / row[0] for row in took),
        )
        for k, chain in enumerate(chains)
    ]


def token_count(links: Chain) -> int:
    """Tokens that leave the blocks, all blocks together."""
    return sum(shapes[0][0] for shapes in state_shapes(links)[1:])


def advise(timings: Sequence[Timed], *, slack: float = 0.02, worth: float = 0.03) -> Advice:
    """The gentlest candidate on the lowest step of time, or none.

    Args:
        timings: of `measure_reducers`; every candidate one that accuracy would allow.
        slack: shares of time that count as the same step.
        worth: the share of the untouched model's time that must be saved, else nothing is reduced.
    """
    candidates = [timing for timing in timings if timing.spec is not None]
    lowest = min((timing.ratio for timing in candidates), default=1.0)
    if lowest > 1 - worth:
        return Advice(
            None,
            1.0,
            f"off: the quickest candidate takes {100 * lowest:.0f} % of the untouched model's time",
        )
    step = [timing for timing in candidates if timing.ratio <= lowest * (1 + slack)]
    best = max(step, key=lambda timing: timing.tokens)
    assert best.spec is not None
    strongest = min(candidates, key=lambda timing: timing.tokens)
    spared = best.tokens - strongest.tokens
    more = f", {spared} tokens more than the strongest candidate" if spared else ""
    return Advice(best.spec, best.ratio, f"{100 * best.ratio:.0f} % of the time{more}")


def edges(timings: Sequence[Timed], *, slack: float = 0.02, worth: float = 0.03) -> list[Timed]:
    """The gentlest candidate of every step of time, from the untouched model's step down.

    What a calibration should choose from: the others keep fewer tokens for no time.

    Args:
        timings, slack, worth: as for `advise`; the first edge saves at least ``worth``.
    """
    candidates = [timing for timing in timings if timing.spec is not None]
    found: list[Timed] = []
    below = 1 - worth
    for timing in sorted(candidates, key=lambda timing: -timing.tokens):
        if timing.ratio <= below:
            found.append(timing)
            below = timing.ratio * (1 - slack)
    return found


@torch.no_grad()
def auto_reducer(
    links: Chain,
    specs: Sequence[ReducerSpec],
    images: Tensor,
    *,
    engine: str = "torch",
    options: EngineOptions | None = None,
    rounds: int = 15,
) -> Advice:
    """Measure the candidates where they are to run, and say which to use, if any."""
    return advise(
        measure_reducers(links, specs, images, engine=engine, options=options, rounds=rounds)
    )
