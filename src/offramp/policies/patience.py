"""Patience: stop when several exits in a row predict the same class.

PABEE, Zhou et al., "BERT Loses Patience", NeurIPS 2020, arXiv 2006.04152.
"""

from typing import Any, Self

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.arguments import whole
from offramp.policies.base import (
    ExitOutputs,
    Memory,
    Parameters,
    ScalarPolicy,
    register_policy,
)

COUNTING = ("agreements", "predictions")


@register_policy("patience")
class Patience(ScalarPolicy):
    """Stop when the predicted class has stayed the same for ``patience`` exits in a row (PABEE).

    Args:
        patience: t, at least 1.
        counting: what is counted to t. ``agreements`` with the exit before (PABEE; ZTW's
            baseline, which waits for more than t equal predictions, is the same): the first
            prediction counts as none, so at least t + 1 active exits run. ``predictions`` that
            are equal (LGViT's released code): one exit sooner.
    """

    def __init__(self, patience: int, counting: str = "agreements") -> None:
        self.patience = whole(self.name, "patience", patience)
        if counting not in COUNTING:
            raise OfframpError(
                f"policy 'patience': counting = {counting!r}, but it must be one of "
                f"{', '.join(COUNTING)}"
            )
        self.counting = counting

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
        needed = self.patience - (self.counting == "predictions")
        return agreements >= needed, (reading, agreements)

    def column(self) -> str | None:
        return "prediction"

    def parameters(self) -> Parameters:
        return {"patience": self.patience, "counting": self.counting}

    @classmethod
    def candidates(cls, num_exits: int, **fitted: Any) -> list[Self]:
        return [cls(patience) for patience in range(1, max(2, num_exits))]
