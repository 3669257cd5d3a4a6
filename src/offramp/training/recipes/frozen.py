"""``frozen``: the heads alone, on a backbone that stays as it is."""

from abc import abstractmethod
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch import distributed as dist

from offramp.chains import State
from offramp.model import MultiExitModel
from offramp.training.feature_cache import FeatureCache
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


class FrozenObjective(Objective):
    """A loss over the heads; the backbone's states come without gradient, cached if asked.

    The cache is right only where a sample's image never changes, so it asks for no augmentation.
    """

    def __init__(self, model: MultiExitModel, cache: FeatureCache | None = None) -> None:
        super().__init__(model)
        self.cache = cache

    def forward(self, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            states = self._states(step)
        return self.losses(states, step)

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()

    def _states(self, step: Step) -> list[State]:
        if self.cache is None:
            return list(self.model.walk(step.images))
        width = self.model.chain.schema.chain_width
        flat = self.cache.fetch(
            step.ids, lambda: [x for state in self.model.walk(step.images) for x in state]
        )
        flat = [x.to(step.images.device) for x in flat]
        return [tuple(flat[i : i + width]) for i in range(0, len(flat), width)]

    @abstractmethod
    def losses(self, states: list[State], step: Step) -> dict[str, Tensor]:
        """States before each exit (early ones, then the last block's) → scalars by name."""


class HeadsCrossEntropy(FrozenObjective):
    """Σ_k CE_k over the early exits."""

    def losses(self, states: list[State], step: Step) -> dict[str, Tensor]:
        model, carry, total = self.model, (), torch.zeros((), device=step.images.device)
        for head, block, state in zip(model.heads, model.positions, states, strict=False):
            said, carry = head(model.chain.tokens(state, block - 1), carry)
            total = total + cross_entropy(said[0], step.targets)
        return {"loss": total}


@register_recipe("frozen")
class Frozen(Recipe):
    """Train the heads only; the backbone, and so the final answer, stays what it was."""

    finetune: StageSettings = settings(epochs=0)
    heads: StageSettings = settings()
    cache_gb: float | None = Field(
        default=None,
        gt=0,
        description="size limit of the feature cache on disk; it needs images that do not change",
    )

    def stages(self) -> list[Stage]:
        def objective(model: MultiExitModel, run: Path) -> Objective:
            if self.cache_gb is None:
                return HeadsCrossEntropy(model)
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            cache = FeatureCache(run / f"features-{rank}", self.cache_gb)
            return HeadsCrossEntropy(model, cache)

        return [
            finetune_stage(self.finetune),
            Stage(
                "heads",
                self.heads,
                objective,
                trains=frozenset(("exits",)),
                fixed_images=self.cache_gb is not None,
            ),
        ]
