"""``joint``: backbone and all exits together, on a weighted sum of their losses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.recipe import (
    Objective,
    Recipe,
    Stage,
    StageSettings,
    Step,
    cross_entropy,
    register_recipe,
    settings,
)
from offramp.training.recipes.finetune import finetune_stage

Weighting = Literal["uniform", "linear", "final-heavy"]

WEIGHTINGS: dict[str, Callable[[Sequence[int]], list[float]]] = {
    "uniform": lambda blocks: [1.0] * len(blocks),
    "linear": lambda blocks: [float(block) for block in blocks],
    "final-heavy": lambda blocks: [1.0] * (len(blocks) - 1) + [2.0],
}


def exit_weights(weighting: str, blocks: Sequence[int]) -> list[float]:
    """Weights per exit that sum to 1.

    Args:
        weighting: ``uniform``; ``linear`` in the block number i, i / Σ i (PABEE, LGViT's odd
            steps); ``final-heavy``, the last exit twice an early one (Multi-Exit ViT).
        blocks: 1-based blocks behind each exit, the last being the depth.
    """
    weights = WEIGHTINGS[weighting](blocks)
    return [weight / sum(weights) for weight in weights]


class WeightedCrossEntropy(Objective):
    """Σ_k w_k · CE_k over all exits, the final one included."""

    def __init__(self, model: MultiExitModel, weighting: str) -> None:
        super().__init__(model)
        self.weights = exit_weights(weighting, model.blocks)

    def forward(self, step: Step) -> dict[str, Tensor]:
        losses = torch.stack(
            [cross_entropy(said[0], step.targets) for said in self.model(step.images)]
        )
        return {"loss": (losses * losses.new_tensor(self.weights)).sum(), "final": losses[-1]}


@register_recipe("joint")
class Joint(Recipe):
    """Train backbone and exits end to end on one weighted sum of cross-entropies."""

    weighting: Weighting = Field(default="uniform", description="weights of the exits' losses")
    finetune: StageSettings = settings(epochs=0)
    joint: StageSettings = settings()

    def stages(self) -> list[Stage]:
        def objective(model: MultiExitModel, run: Path) -> Objective:
            return WeightedCrossEntropy(model, self.weighting)

        return [finetune_stage(self.finetune), Stage("joint", self.joint, objective)]
