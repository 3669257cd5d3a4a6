"""Best of: whoever finds no sure exit gets the answer of the surest.

SDN, Kaya et al., "Shallow-Deep Networks", ICML 2019.
"""

import torch
from torch import Tensor

from offramp.policies.base import ExitOutputs, Memory, register_policy
from offramp.policies.path import ClassPathPolicy

_CLEARLY = 1e-6
"""Softmax rounds there. Among equally sure exits the first speaks, on every engine the same."""


@register_policy("best_of")
class BestOf(ClassPathPolicy):
    """Stop when the largest softmax probability exceeds the threshold; else the surest exit (SDN).

    A sample that no exit is sure about has run the whole model; its answer is that of the active
    exit, the last one included, with the highest confidence.
    """

    always = 0.0
    never = 1.0

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        """The highest confidence so far (B,), and the logits (B, C) that had it."""
        surest = torch.full((batch,), -1.0, device=device)
        return surest, torch.zeros(batch, self.num_classes, device=device)

    def follow(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        surest, best = memory
        logits = self.logits(outputs)
        confidence = torch.softmax(logits, dim=-1).amax(dim=-1)
        surer = confidence > surest + _CLEARLY
        surest = torch.where(surer, confidence, surest)
        best = torch.where(surer[:, None], logits, best)
        return confidence, logits, (surest, best)

    def final_answer(self, k: int, outputs: ExitOutputs, memory: Memory) -> Tensor:
        _, _, (_, best) = self.follow(k, outputs, memory)
        return best
