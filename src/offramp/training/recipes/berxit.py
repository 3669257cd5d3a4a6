"""``berxit``: the final exit and all exits in turn, and exits that learn when they are right.

Xin et al., "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression",
EACL 2021. Exits leave by what they learned (policy ``learned``); heads get that signal with the
option ``lte: true``, and any recipe with labels trains it (`certainty_loss`).
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.recipe import Objective, Step, register_recipe
from offramp.training.recipes.joint import EndToEndRecipe, WeightedCrossEntropy, exit_weights

Strategy = Literal["alternating", "joint", "weighted"]


class AlternatingCrossEntropy(WeightedCrossEntropy):
    """Even steps L_K alone, odd steps Σ_k w_k L_k with the learned certainties."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        if step.number % 2:
            return super().forward(step)
        return {"loss": self.task_loss(self.model.chain(step.images), step.targets)}


@register_recipe("berxit")
class BERxiT(EndToEndRecipe):
    """Alternate between the final exit and the sum of all; ``deebert`` is its two-stage rival."""

    strategy: Strategy = Field(
        default="alternating",
        description="or all exits on each step: summed, or weighted by depth",
    )

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        if self.strategy == "weighted":
            return WeightedCrossEntropy(model, exit_weights("linear", model.blocks))
        kind = AlternatingCrossEntropy if self.strategy == "alternating" else WeightedCrossEntropy
        return kind(model, [1.0] * model.num_exits)
