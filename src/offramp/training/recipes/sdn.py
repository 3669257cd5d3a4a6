"""``sdn``: shallow-deep networks, internal classifiers whose weight grows while they train.

Kaya, Hong and Dumitras, "Shallow-Deep Networks: Understanding and Mitigating Network
Overthinking", ICML 2019. Exits leave by confidence, else the surest one answers (policy
``best_of``).
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.training.caching import Caching
from offramp.training.recipe import (
    Objective,
    Stage,
    StageSettings,
    Step,
    register_recipe,
    settings,
)
from offramp.training.recipes.frozen import Frozen
from offramp.training.recipes.joint import EndToEndRecipe, WeightedCrossEntropy


def ramp(shares: Sequence[float], epoch: int, epochs: int) -> list[float]:
    """τ_i(e) = min(m_i, 0.01 + e · m_i / E): each exit's weight grows to its share m_i."""
    return [min(m, 0.01 + epoch * m / epochs) for m in shares]


class RampedCrossEntropy(WeightedCrossEntropy):
    """Σ_i τ_i(e) CE_i + CE_final.

    Args:
        model: trained as a whole.
        shares: m_i of each early exit, its share of the network's cost.
        epochs: E.
    """

    def __init__(self, model: MultiExitModel, shares: Sequence[float], epochs: int) -> None:
        super().__init__(model, [*shares, 1.0])
        self.shares, self.epochs = list(shares), epochs

    def weights_at(self, step: Step) -> list[float]:
        return [*ramp(self.shares, step.epoch, self.epochs), 1.0]


@register_recipe("sdn")
class SDN(EndToEndRecipe, Caching):
    """Everything with ramped weights; or, with epochs in ``heads`` instead, the heads alone.

    For the second form (the paper's IC-only) set ``joint.epochs`` to 0 and ``heads.epochs`` to 25.
    """

    shares: list[float] | None = Field(
        default=None,
        description="m_i of each early exit, rising; by default its blocks over all (the paper: "
        "0.15, 0.3 … 0.9 of the cost)",
    )
    joint: StageSettings = settings(
        epochs=100, optimizer="momentum", lr=0.1, sched="step", milestones=[0.35, 0.6, 0.85]
    )
    heads: StageSettings = settings(
        epochs=0, optimizer="adam", lr=1e-3, sched="step", milestones=[0.6]
    )

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        shares = self.shares or [block / len(model.chain) for block in model.positions]
        if len(shares) != len(model.exits):
            raise OfframpError(
                f"recipe.shares names {len(shares)} exits, but the model has {len(model.exits)}"
            )
        return RampedCrossEntropy(model, shares, self.joint.epochs)

    def stages(self, model: MultiExitModel) -> list[Stage]:
        heads = Frozen(heads=self.heads, cache_gb=self.cache_gb, cache_folder=self.cache_folder)
        return [*super().stages(model), heads.heads_stage()]
