"""``joint``: backbone and all exits together, on a weighted sum of their losses."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.certainty import certainty_loss
from offramp.training.recipe import (
    Objective,
    Recipe,
    Stage,
    StageSettings,
    Step,
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
    """Σ_k w_k · L_k over all exits, the final one included; L is the task's loss.

    Args:
        model: trained as a whole.
        weighting: a name of `exit_weights`, or one weight per exit.
    """

    def __init__(self, model: MultiExitModel, weighting: str | Sequence[float]) -> None:
        super().__init__(model)
        if isinstance(weighting, str):
            weighting = exit_weights(weighting, model.blocks)
        self.weights = list(weighting)

    def weights_at(self, step: Step) -> list[float]:
        """The weights in this step."""
        return self.weights

    def answers(self, images: Tensor) -> list[NamedTuple]:
        """Images (B, 3, H, W) → what every exit says."""
        return self.model(images)

    def losses(self, said: list[NamedTuple], step: Step) -> list[Tensor]:
        """Loss of each exit."""
        return [self.task_loss(outputs[0], step.targets) for outputs in said]

    def forward(self, step: Step) -> dict[str, Tensor]:
        said = self.answers(step.images)
        losses = torch.stack(self.losses(said, step))
        loss = (losses * losses.new_tensor(self.weights_at(step))).sum()
        learned = certainty_loss(self.model.task, said, step.targets)
        if learned is None:
            return {"loss": loss, "final": losses[-1]}
        return {"loss": loss + learned, "final": losses[-1], "certainty": learned}


class EndToEndRecipe(Recipe):
    """A stage for the plain backbone, skipped by default, and one for backbone and all exits."""

    finetune: StageSettings = settings(epochs=0)
    joint: StageSettings = settings()

    @abstractmethod
    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        """The loss of the stage ``joint``."""

    def stages(self, model: MultiExitModel) -> list[Stage]:
        return [finetune_stage(self.finetune), Stage("joint", self.joint, self.objective)]


@register_recipe("joint")
class Joint(EndToEndRecipe):
    """Train backbone and exits end to end on one weighted sum of cross-entropies."""

    weighting: Weighting = Field(default="uniform", description="weights of the exits' losses")

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        return WeightedCrossEntropy(model, self.weighting)
