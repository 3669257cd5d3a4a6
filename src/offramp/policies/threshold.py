"""Threshold policies: stop at the first exit that is surer than its threshold.

All are written so that a *higher* score is surer, and stop when ``score > threshold``, strictly.
Confidence is LGViT's criterion (Xu et al., ACM MM 2023, arXiv 2308.00255, with one threshold 0.8
for all exits); entropy is BranchyNet's (Teerapittayanon et al., ICPR 2016); margin is the classic
difference of the two likeliest classes.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.base import (
    ExitOutputs,
    Memory,
    Parameters,
    ScalarPolicy,
    register_policy,
)


class ThresholdPolicy(ScalarPolicy):
    """Stop when the exit's score exceeds its threshold.

    Args:
        thresholds: (K,) one per exit, in units of the score; the last is ignored.
        temperatures: (K,) the softmax is taken over logits / temperature; 1 when omitted.

    Attributes:
        always: a threshold that every sample exceeds.
        never: a threshold that no sample exceeds.
    """

    always: ClassVar[float]
    never: ClassVar[float]

    def __init__(
        self, thresholds: Sequence[float], temperatures: Sequence[float] | None = None
    ) -> None:
        self.thresholds = _numbers(self.name, "thresholds", thresholds)
        self.temperatures = (
            (1.0,) * len(self.thresholds)
            if temperatures is None
            else _numbers(self.name, "temperatures", temperatures)
        )
        if len(self.temperatures) != len(self.thresholds):
            raise OfframpError(
                f"policy {self.name!r}: {len(self.thresholds)} thresholds but "
                f"{len(self.temperatures)} temperatures (one per exit each)"
            )
        if min(self.temperatures) <= 0:
            raise OfframpError(f"policy {self.name!r}: temperatures must be above 0")

    @classmethod
    def shared(cls, threshold: float, num_exits: int) -> Self:
        """The same threshold at every exit, as the papers use it."""
        return cls([threshold] * num_exits)

    @abstractmethod
    def score(self, probabilities: Tensor) -> Tensor:
        """How sure an exit is: (B, C) probabilities to (B,), higher is surer."""

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        logits = outputs.logits.float()
        if self.temperatures[k] != 1.0:
            logits = logits / self.temperatures[k]
        return self.score(torch.softmax(logits, dim=-1))

    def decide(self, k: int, reading: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return reading > self.thresholds[k], memory

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        return ()

    def column(self) -> str | None:
        return self.name if set(self.temperatures) == {1.0} else None

    def parameters(self) -> Parameters:
        return {"thresholds": list(self.thresholds), "temperatures": list(self.temperatures)}

    def check(self, num_exits: int) -> None:
        if len(self.thresholds) != num_exits:
            raise OfframpError(
                f"policy {self.name!r} has {len(self.thresholds)} thresholds, "
                f"but the model has {num_exits} exits"
            )

    @classmethod
    def candidates(cls, num_exits: int) -> list[Self]:
        low = max(cls.always, -math.log(1000))  # below -ln C no entropy score is found
        inner = [low + (cls.never - low) * step / 20 for step in range(1, 20)]
        return [cls.shared(value, num_exits) for value in (cls.always, *inner, cls.never)]


@register_policy("confidence")
class Confidence(ThresholdPolicy):
    """Stop when the largest softmax probability exceeds the exit's threshold (LGViT, SDN)."""

    always = 0.0
    never = 1.0

    def score(self, probabilities: Tensor) -> Tensor:
        return probabilities.amax(dim=-1)


@register_policy("entropy")
class Entropy(ThresholdPolicy):
    """Stop when the entropy of the softmax is below the exit's threshold (BranchyNet, DeeBERT).

    The score is *minus* the entropy in nats: a threshold of -0.6 stops when the entropy is below
    0.6 nats. People are shown nats; configs hold the score.
    """

    always = -100.0  # no softmax has 100 nats: that would be e¹⁰⁰ classes
    never = 0.0

    def score(self, probabilities: Tensor) -> Tensor:
        return -torch.special.entr(probabilities).sum(dim=-1)


@register_policy("margin")
class Margin(ThresholdPolicy):
    """Stop when the two largest softmax probabilities differ by more than the threshold."""

    always = -1.0
    never = 1.0

    def score(self, probabilities: Tensor) -> Tensor:
        first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
        return first - second


def _numbers(name: str, key: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise OfframpError(f"policy {name!r}: {key} must be a list of numbers") from None
    if not numbers or any(math.isnan(value) for value in numbers):
        raise OfframpError(f"policy {name!r}: {key} must be numbers, one per exit")
    return numbers
