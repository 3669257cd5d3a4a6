"""``boosted``: exits that correct the sum of those before them.

Yu et al., "Boosted Dynamic Neural Networks", AAAI 2023 (BoostNet). The sums answer and decide in
policy ``boosted``; where ``keep`` is not 0.5, tell it: ``--policy-option keep=0.3``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.recipe import Objective, Step, register_recipe
from offramp.training.recipes.gradient_equilibrium import BalancedCrossEntropy
from offramp.training.recipes.joint import EndToEndRecipe


def boosted_sums(said: Sequence[Tensor], keep: float) -> list[Tensor]:
    """F_m = f_m + t · F_{m−1}, F_1 = f_1, with no gradient into what came before."""
    sums = [said[0]]
    for logits in said[1:]:
        sums.append(logits + keep * sums[-1].detach())
    return sums


class BoostedCrossEntropy(BalancedCrossEntropy):
    """Σ_m CE(f_m + t · stopgrad(F_{m−1})) with gradient equilibrium."""

    def __init__(self, model: MultiExitModel, keep: float) -> None:
        super().__init__(model, [1.0] * model.num_exits)
        self.keep = keep

    def losses(self, said: list[NamedTuple], step: Step) -> list[Tensor]:
        sums = boosted_sums([outputs[0] for outputs in said], self.keep)
        return [self.task_loss(total, step.targets) for total in sums]


@register_recipe("boosted")
class Boosted(EndToEndRecipe):
    """Additive exits over gradient equilibrium; the final exit, too, only corrects the sum."""

    keep: float = Field(default=0.5, ge=0, description="t, the weight of what earlier exits said")

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        return BoostedCrossEntropy(model, self.keep)
