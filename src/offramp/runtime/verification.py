"""After every export: each compiled segment against torch, on the same tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.engines.engine import Program
from offramp.runtime.parts import Part

SIZES = (1, 2, 7)
TOLERANCES = {"float32": 2e-4, "bfloat16": 0.08, "float16": 0.02}
"""Largest difference allowed, relative to the largest value; int8 is judged by its records."""
MARGINS = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01, "int8": 0.2}
"""Decisions must agree where torch's score is further than this from the threshold."""


def verify(program: Program, parts: Sequence[Part], images: Tensor) -> dict[str, Any]:
    """Compare every segment of a program with the part it was made from, at batch 1, 2 and 7.

    Each segment gets torch's flow as input, so differences do not add up along the chain.

    Args:
        parts: on CPU in float32, built with the same policy.
        images: at least 7 real images (N, 3, H, W).

    Returns:
        Per segment the largest relative difference and how many decisions were compared, agreed
        and were too close to the threshold to count.

    Raises:
        OfframpError: when a segment differs by more than the precision explains, naming it.
    """
    tolerance, margin = TOLERANCES.get(program.precision), MARGINS[program.precision]
    found = [Comparison() for _ in parts]
    with torch.no_grad():
        for size in SIZES:
            flow: tuple[Tensor, ...] = (images[:size].float(), *_memory(parts[0], size))
            for segment, part, comparison in zip(program.segments, parts, found, strict=True):
                wanted, got = part(*flow), segment.call(*flow)
                comparison.add(part, wanted, got, margin)
                flow = wanted[: len(part.layout.flow)]
    for part, comparison in zip(parts, found, strict=True):
        where = f"the segment that ends in exit {part.layout.exit_index}"
        if tolerance is not None and comparison.difference > tolerance:
            raise OfframpError(
                f"{where} differs from torch by {comparison.difference:.2g} of its largest value, "
                f"more than {program.precision} explains ({tolerance:g}): do not use this export"
            )
        if comparison.wrong:
            raise OfframpError(
                f"{where} decides differently from torch for {comparison.wrong} of "
                f"{comparison.decisions} samples away from the threshold: do not use this export"
            )
    return {
        "batch_sizes": list(SIZES),
        "tolerance": tolerance,
        "margin": margin,
        "segments": [comparison.report() for comparison in found],
    }


class Comparison:
    """Differences of one segment over all batches."""

    def __init__(self) -> None:
        self.difference = 0.0
        self.decisions = self.near = self.wrong = 0

    def add(
        self, part: Part, wanted: tuple[Tensor, ...], got: tuple[Tensor, ...], margin: float
    ) -> None:
        names = part.layout.outputs
        for name, one, other in zip(names, wanted, got, strict=True):
            if one.is_floating_point() and name != "score":
                scale = float(one.abs().max().clamp(min=1.0))
                gap = float((one.float() - other.float()).abs().max()) / scale
                self.difference = max(self.difference, gap)
        if "stop" not in names:
            return
        stop, said = wanted[names.index("stop")], got[names.index("stop")].bool()
        near = _near(part, wanted[names.index("score")], margin)
        self.decisions += len(stop)
        self.near += int(near.sum())
        self.wrong += int(((stop != said) & ~near).sum())

    def report(self) -> dict[str, float]:
        return {
            "difference": self.difference,
            "decisions": self.decisions,
            "near_threshold": self.near,
        }


def _near(part: Part, score: Tensor, margin: float) -> Tensor:
    """Samples whose score is close to the threshold; all of them where a rule has none to name."""
    thresholds = getattr(part.policy, "thresholds", None)
    if thresholds is None:
        return torch.ones_like(score, dtype=torch.bool)
    return (score - thresholds[part.layout.exit_index]).abs() <= margin


def _memory(part: Part, batch: int) -> tuple[Tensor, ...]:
    return () if part.policy is None else part.policy.start(batch)
