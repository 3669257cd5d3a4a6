"""``msdnet``: everything on the plain sum of all losses.

Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification", ICLR 2018.
Its thresholds follow a budget (policy ``budgeted``), or time itself (anytime).
"""

from pathlib import Path

from offramp.model import MultiExitModel
from offramp.training.recipe import Objective, StageSettings, register_recipe, settings
from offramp.training.recipes.joint import EndToEndRecipe, WeightedCrossEntropy


@register_recipe("msdnet")
class MSDNet(EndToEndRecipe):
    """Σ_k CE_k over all exits, unweighted; defaults as published for CIFAR from scratch."""

    joint: StageSettings = settings(
        epochs=300,
        batch_size=64,
        optimizer="momentum",
        lr=0.1,
        weight_decay=1e-4,
        sched="step",
        milestones=[0.5, 0.75],
        clip_grad=None,
    )

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        return WeightedCrossEntropy(model, [1.0] * model.num_exits)
