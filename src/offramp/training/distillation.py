"""Exits that learn from other exits of the same model (self-distillation)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from offramp.training.recipe import prediction_distillation


class Teaching(BaseModel):
    """Who teaches each early exit, and how much.

    An early exit's loss becomes (1 − share) · L + share · T² · KL(teacher ‖ exit); teachers carry
    no gradient. Hinton et al., 2015, between the exits of one network (Zhang et al., ICCV 2019,
    from the last; LGViT's second stage with share 0.3, T = 2).
    """

    model_config = ConfigDict(extra="forbid")

    teacher: Literal["last", "next", "later"] = Field(
        default="last", description="the final exit, the next one, or the mean over all later ones"
    )
    share: float = Field(default=0.3, ge=0, le=1, description="of the lesson in the loss")
    temperature: float = Field(default=2.0, gt=0, description="T, softens both predictions")

    def teachers(self, k: int, exits: int) -> range:
        """Indices of the exits that teach early exit ``k`` of ``exits``."""
        if self.teacher == "last":
            return range(exits - 1, exits)
        return range(k + 1, k + 2 if self.teacher == "next" else exits)


def taught(
    losses: Sequence[Tensor],
    said: Sequence[Tensor],
    teaching: Teaching,
    weights: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Losses of the early exits with their lessons mixed in.

    Args:
        losses: of the early exits on labels.
        said: logits (B, C) of every exit, the final one last.
        teaching: who teaches whom.
        weights: (B,) of the samples at each early exit, as in their losses.
    """
    mixed = []
    for k, loss in enumerate(losses):
        lessons = [
            prediction_distillation(
                said[k],
                said[t].detach(),
                temperature=teaching.temperature,
                weights=None if weights is None else weights[k],
            )
            for t in teaching.teachers(k, len(said))
        ]
        lesson = torch.stack(lessons).mean()
        mixed.append((1 - teaching.share) * loss + teaching.share * lesson)
    return mixed
