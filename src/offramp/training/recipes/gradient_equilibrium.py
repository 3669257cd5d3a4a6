"""``gradient_equilibrium``: exits that do not pull the shared blocks each their way.

Li et al., "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019 (IMTA): gradient
equilibrium, then a stage in which the last exit teaches the others. (Its third idea, a link from
each exit's answer to the next head, is a head: exit ``ztw`` with ``link: isc``.)
"""

from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.distillation import Teaching
from offramp.training.equilibrium import balanced_answers
from offramp.training.recipe import Objective, Stage, StageSettings, register_recipe, settings
from offramp.training.recipes.joint import EndToEndRecipe, WeightedCrossEntropy
from offramp.training.recipes.self_distillation import TaughtCrossEntropy


class BalancedCrossEntropy(WeightedCrossEntropy):
    """Σ_k CE_k with gradient equilibrium."""

    def answers(self, images: Tensor) -> list[NamedTuple]:
        return balanced_answers(self.model, images)


class BalancedTeaching(BalancedCrossEntropy, TaughtCrossEntropy):
    """CE_K + Σ_{k<K} [(1 − g) CE_k + g T² KL(last ‖ exit k)] with gradient equilibrium."""


@register_recipe("gradient_equilibrium")
class GradientEquilibrium(EndToEndRecipe):
    """Every block learns from the mean of the gradients above it; then the last exit teaches."""

    tasks = ("classification",)

    teach: StageSettings = settings(epochs=0)
    teaching: Teaching = Field(
        default_factory=lambda: Teaching(share=0.1, temperature=1.0),
        description="g and T of the second stage",
    )

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        return BalancedCrossEntropy(model, [1.0] * model.num_exits)

    def stages(self, model: MultiExitModel) -> list[Stage]:
        def second(model: MultiExitModel, run: Path) -> Objective:
            return BalancedTeaching(model, [1.0] * model.num_exits, self.teaching)

        return [*super().stages(model), Stage("teach", self.teach, second)]
