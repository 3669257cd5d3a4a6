"""Threshold policies: stop at the first exit that is surer than its threshold.

All are written so that a *higher* score is surer, and stop when ``score > threshold``, strictly.
Confidence is LGViT's criterion (Xu et al., ACM MM 2023, arXiv 2308.00255, with one threshold 0.8
for all exits); entropy is BranchyNet's (Teerapittayanon et al., ICPR 2016); margin is the classic
difference of the two likeliest classes.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.arguments import numbers
from offramp.policies.base import (
    ExitOutputs,
    Memory,
    Parameters,
    ScalarPolicy,
    register_policy,
)
from offramp.policies.thresholded import Thresholded


class ThresholdPolicy(Thresholded, ScalarPolicy):
    """Stop when the exit's score exceeds its threshold; a family defines `read`.

    Args:
        thresholds: (K,) one per exit, in units of the score; the last is ignored.
        temperatures: (K,) the softmax is taken over logits / temperature; 1 when omitted.
    """

    def __init__(
        self, thresholds: Sequence[float], temperatures: Sequence[float] | None = None
    ) -> None:
        super().__init__(thresholds)
        self.temperatures = (
            (1.0,) * len(self.thresholds)
            if temperatures is None
            else numbers(self.name, "temperatures", temperatures)
        )
        if len(self.temperatures) != len(self.thresholds):
            raise OfframpError(
                f"policy {self.name!r}: {len(self.thresholds)} thresholds but "
                f"{len(self.temperatures)} temperatures (one per exit each)"
            )
        if min(self.temperatures) <= 0:
            raise OfframpError(f"policy {self.name!r}: temperatures must be above 0")

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


class SoftmaxPolicy(ThresholdPolicy):
    """A threshold on one number computed from an exit's softmax; a family defines `score`."""

    @abstractmethod
    def score(self, probabilities: Tensor) -> Tensor:
        """How sure an exit is: (B, C) probabilities to (B,), higher is surer."""

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        logits = outputs.logits.float()
        if self.temperatures[k] != 1.0:
            logits = logits / self.temperatures[k]
        return self.score(torch.softmax(logits, dim=-1))


@register_policy("confidence")
class Confidence(SoftmaxPolicy):
    """Stop when the largest softmax probability exceeds the exit's threshold (LGViT, SDN)."""

    always = 0.0
    never = 1.0

    def score(self, probabilities: Tensor) -> Tensor:
        return probabilities.amax(dim=-1)


@register_policy("entropy")
class Entropy(SoftmaxPolicy):
    """Stop when the entropy of the softmax is below the exit's threshold (BranchyNet, DeeBERT).

    The score is *minus* the entropy in nats: a threshold of -0.6 stops when the entropy is below
    0.6 nats. People are shown nats; configs hold the score.
    """

    always = -100.0  # no softmax has 100 nats: that would be e¹⁰⁰ classes
    never = 0.0

    def score(self, probabilities: Tensor) -> Tensor:
        return negative_entropy(probabilities)


@register_policy("normalised_entropy")
class NormalisedEntropy(SoftmaxPolicy):
    """Stop when 1 - H / ln C exceeds the threshold: 0 for no idea, 1 for sure (EENet).

    The entropy's order of samples, on a scale that does not depend on the number of classes; one
    of the inputs of EENet's scores (WACV 2024).
    """

    always = -1.0
    never = 1.0

    def score(self, probabilities: Tensor) -> Tensor:
        return 1 + negative_entropy(probabilities) / math.log(max(probabilities.shape[-1], 2))


@register_policy("margin")
class Margin(SoftmaxPolicy):
    """Stop when the two largest softmax probabilities differ by more than the threshold."""

    always = -1.0
    never = 1.0

    def score(self, probabilities: Tensor) -> Tensor:
        first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
        return first - second


def negative_entropy(probabilities: Tensor) -> Tensor:
    """Minus the entropy in nats: (B, C) to (B,)."""
    return -torch.special.entr(probabilities).sum(dim=-1)
