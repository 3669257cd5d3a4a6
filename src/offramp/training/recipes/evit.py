"""``evit``: backbone and exits while a keep rate falls (Liang et al., ICLR 2022)."""

import math
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.reducers.evit import EViT
from offramp.training.passage import reducer_of
from offramp.training.recipe import (
    Objective,
    Recipe,
    Stage,
    StageSettings,
    Step,
    register_recipe,
    settings,
)
from offramp.training.recipes.joint import Weighting, exit_weights


def shrinking_rate(epoch: int, keep: float, start: int, shrink: int) -> float:
    """Keep rate in an epoch: 1 until ``start``, a cosine to ``keep`` over ``shrink`` epochs."""
    if epoch < start:
        return 1.0
    if epoch >= start + shrink:
        return keep
    return keep + (1 - keep) * (1 + math.cos(math.pi * (epoch - start) / shrink)) / 2


class ShrinkingCrossEntropy(Objective):
    """Σ_k w_k · L_k over all exits, at the epoch's keep rate."""

    def __init__(self, model: MultiExitModel, start: int, shrink: int, weighting: str) -> None:
        super().__init__(model)
        self.links = (reducer_of(model, EViT, "evit"),)  # a tuple is not registered twice
        self.start, self.shrink = start, shrink
        self.weights = exit_weights(weighting, model.blocks)

    @property
    def reducer(self) -> EViT:
        reducer = self.links[0].reducer
        assert isinstance(reducer, EViT)
        return reducer

    def forward(self, step: Step) -> dict[str, Tensor]:
        self.reducer.rate = shrinking_rate(step.epoch, self.reducer.keep, self.start, self.shrink)
        said = self.model(step.images)
        losses = torch.stack([self.task_loss(outputs[0], step.targets) for outputs in said])
        loss = (losses * losses.new_tensor(self.weights)).sum()
        return {"loss": loss, "final": losses[-1], "rate": losses.new_tensor(self.reducer.rate)}

    def close(self) -> None:
        self.reducer.rate = self.reducer.keep


@register_recipe("evit")
class EViTRecipe(Recipe):
    """EViT: train with tokens left out, at once when fine-tuning, by a falling rate from scratch.

    The defaults fine-tune a pretrained backbone; the paper trains from scratch for 300 epochs with
    ``start: 10`` and ``shrink: 100``.
    """

    evit: StageSettings = settings(epochs=30, lr=2e-5, weight_decay=1e-6, sched="cosine")
    start: int = Field(default=0, ge=0, description="epochs with all tokens")
    shrink: int = Field(default=0, ge=0, description="epochs in which the keep rate then falls")
    weighting: Weighting = Field(default="uniform", description="weights of the exits' losses")

    def stages(self, model: MultiExitModel) -> list[Stage]:
        def objective(model: MultiExitModel, run: Path) -> Objective:
            return ShrinkingCrossEntropy(model, self.start, self.shrink, self.weighting)

        return [Stage("evit", self.evit, objective)]
