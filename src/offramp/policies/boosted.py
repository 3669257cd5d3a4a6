"""Boosted: every exit corrects the sum of those before it.

BoostNet, Yu et al., "Boosted Dynamic Neural Networks", AAAI 2023.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offramp.policies.arguments import number
from offramp.policies.base import ExitOutputs, Memory, Parameters, register_policy
from offramp.policies.path import ClassPathPolicy

if TYPE_CHECKING:
    from offramp.calibration.records import Records

_CHUNK = 4096


@register_policy("boosted")
class Boosted(ClassPathPolicy):
    """Stop when the largest softmax probability of F = f + t · F_before exceeds the threshold.

    f are the exit's logits and F_before the sum at the active exit before it; F decides and
    answers, also at the last exit (BoostNet). For models trained with that sum in the loss: their
    full model is F at the last exit with all exits on, and losses are held against it.

    Args:
        thresholds: (K,) in units of probability; the last is ignored.
        num_classes: C.
        keep: t, the weight of what earlier exits said; 0 is the confidence policy.
    """

    always = 0.0
    never = 1.0
    options = MappingProxyType({"keep": 0.5})

    def __init__(self, thresholds: Sequence[float], num_classes: int, keep: float = 0.5) -> None:
        super().__init__(thresholds, num_classes)
        self.keep = number(self.name, "keep", keep, least=0)

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        return (torch.zeros(batch, self.num_classes, device=device),)

    def follow(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        boosted = self.logits(outputs) + self.keep * memory[0]
        return torch.softmax(boosted, dim=-1).amax(dim=-1), boosted, (boosted,)

    @classmethod
    def full_prediction(
        cls, records: "Records", *, keep: float = 0.5, **fitted: Any
    ) -> Tensor | None:
        parts = []
        for start in range(0, len(records), _CHUNK):
            said = records.said(slice(start, min(start + _CHUNK, len(records))))
            total = torch.zeros_like(said[0].logits, dtype=torch.float32)
            for outputs in said:
                total = outputs.logits.float() + keep * total
            parts.append(total.argmax(dim=-1))
        return torch.cat(parts)

    def parameters(self) -> Parameters:
        return {**super().parameters(), "keep": self.keep}
