"""``branchynet``: the main network first, then everything on a weighted sum of losses.

Teerapittayanon, McDanel and Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural
Networks", ICPR 2016. Exits leave by entropy (policy ``entropy``).
"""

from pathlib import Path

from pydantic import Field

from offramp.model import MultiExitModel
from offramp.training.recipe import Objective, StageSettings, register_recipe, settings
from offramp.training.recipes.joint import EndToEndRecipe, WeightedCrossEntropy


def falling_weights(count: int, first: float, last: float) -> list[float]:
    """Weights of ``count`` exits, falling evenly from ``first`` to ``last``."""
    return [first + (last - first) * k / (count - 1) for k in range(count)]


@register_recipe("branchynet")
class BranchyNet(EndToEndRecipe):
    """The main network alone, then Σ_n w_n CE_n with most weight on the first branch.

    The paper reports weights 1.0 … 0.3 about a point above equal ones.
    """

    first: float = Field(default=1.0, gt=0, description="weight of the first exit")
    last: float = Field(default=0.3, gt=0, description="weight of the final exit; even steps to it")
    finetune: StageSettings = settings(epochs=50, optimizer="adam", lr=1e-3)
    joint: StageSettings = settings(epochs=100, optimizer="adam", lr=1e-3)

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        weights = falling_weights(model.num_exits, self.first, self.last)
        return WeightedCrossEntropy(model, weights)
