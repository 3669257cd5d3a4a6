"""Patience: stop when several exits in a row predict the same class.

PABEE, Zhou et al., "BERT Loses Patience", NeurIPS 2020, arXiv 2006.04152.
"""

from typing import Self

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


@register_policy("patience")
class Patience(ScalarPolicy):
    """Stop when the predicted class has stayed the same for ``patience`` exits in a row (PABEE).

    The first prediction counts as zero agreements, so at least ``patience + 1`` active exits run.
    LGViT's released code stops after t identical predictions, one exit sooner: its t is our t - 1.

    Args:
        patience: number of agreements t, at least 1.
    """

    def __init__(self, patience: int) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise OfframpError(
                f"policy 'patience': patience = {patience!r}, but it must be a whole number ≥ 1"
            )
        self.patience = patience

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        last = torch.full((batch,), -1, dtype=torch.int64, device=device)  # no class is -1
        return last, torch.zeros(batch, dtype=torch.int64, device=device)

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        return outputs.logits.argmax(dim=-1)

    def decide(self, k: int, reading: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        last, agreements = memory
        agreements = torch.where(reading == last, agreements + 1, 0)
        return agreements >= self.patience, (reading, agreements)

    def column(self) -> str | None:
        return "prediction"

    def parameters(self) -> Parameters:
        return {"patience": self.patience}

    @classmethod
    def candidates(cls, num_exits: int) -> list[Self]:
        return [cls(patience) for patience in range(1, max(2, num_exits))]
