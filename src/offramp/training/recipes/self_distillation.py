"""``self_distillation``: everything at once, deeper exits teaching the shallower ones.

Zhang et al., "Be Your Own Teacher", ICCV 2019, and the many that followed. On a frozen backbone the
same lesson is the option ``teaching`` of ``frozen``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.distillation import Teaching, taught
from offramp.training.recipe import Objective, Step, register_recipe
from offramp.training.recipes.joint import Joint, WeightedCrossEntropy


class TaughtCrossEntropy(WeightedCrossEntropy):
    """Σ_k w_k [(1 − a) CE_k + a T² KL(teacher ‖ exit k)], the final exit on labels alone."""

    def __init__(
        self, model: MultiExitModel, weighting: str | Sequence[float], teaching: Teaching
    ) -> None:
        super().__init__(model, weighting)
        self.teaching = teaching

    def losses(self, said: list[NamedTuple], step: Step) -> list[Tensor]:
        *early, final = super().losses(said, step)
        return [*taught(early, [outputs[0] for outputs in said], self.teaching), final]


@register_recipe("self_distillation")
class SelfDistillation(Joint):
    """Every early exit learns from labels and from the last, the next or all later exits."""

    tasks = ("classification",)

    teaching: Teaching = Field(default_factory=Teaching)

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        return TaughtCrossEntropy(model, self.weighting, self.teaching)
