"""``pabee``: all exits at once, each weighted by its depth.

Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020. Samples
leave when consecutive exits agree (policy ``patience``).
"""

from pathlib import Path

from offramp.model import MultiExitModel
from offramp.training.recipe import Objective, register_recipe
from offramp.training.recipes.joint import EndToEndRecipe, WeightedCrossEntropy


@register_recipe("pabee")
class PABEE(EndToEndRecipe):
    """Σ_j j·L_j / Σ_j j over the exits' blocks j, the depth included."""

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        return WeightedCrossEntropy(model, "linear")
