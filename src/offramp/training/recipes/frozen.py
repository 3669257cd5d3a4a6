"""``frozen``: the heads alone, on a backbone that stays as it is."""

from abc import abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from offramp.chains import State
from offramp.data import Batch
from offramp.errors import OfframpError
from offramp.exits import Outputs
from offramp.model import MultiExitModel
from offramp.training.caching import Caching
from offramp.training.certainty import certainty_loss
from offramp.training.distillation import Teaching, taught
from offramp.training.every_image import EveryImage
from offramp.training.feature_cache import FeatureCache
from offramp.training.features import Features, FrozenFeatures, early_answers
from offramp.training.recipe import (
    Objective,
    Stage,
    StageSettings,
    Step,
    register_recipe,
    settings,
)
from offramp.training.recipes.finetune import finetune_stage
from offramp.training.trained import Parameters, classifier, exits


class FrozenObjective(Objective):
    """A loss over the heads; the backbone's states come without gradient."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            states = list(self.model.walk(step.images))
        return self.losses(states, step)

    @abstractmethod
    def losses(self, states: list[State], step: Step) -> dict[str, Tensor]:
        """States before each exit (early ones, then the last block's) → scalars by name."""


class Survivors(BaseModel):
    """Heads see the samples that reach them.

    Head k weights a sample by the chance that no earlier head kept it, ∏_{j<k} (1 − a_j), where
    a_j is 1 for a confidence above ``threshold`` and 0 below, or with ``softness`` s
    σ((confidence − threshold) / s). The weights carry no gradient.
    """

    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(default=0.8, ge=0, le=1, description="confidence at which one leaves")
    softness: float = Field(default=0.0, ge=0, description="width of the step; 0 is sharp")
    floor: float = Field(
        default=0.1, ge=0, le=1, description="least weight, so that deep heads see all a little"
    )

    def leave(self, logits: Tensor) -> Tensor:
        """How likely a head keeps each sample: (B, C) → (B,)."""
        confidence = logits.detach().float().softmax(dim=-1).amax(dim=-1)
        if self.softness == 0:
            return (confidence > self.threshold).float()
        return torch.sigmoid((confidence - self.threshold) / self.softness)

    def weights(self, said: list[Tensor]) -> list[Tensor]:
        """Logits of each head, shallow to deep → weights (B,) of the samples at each head."""
        reaching = torch.ones(len(said[0]), device=said[0].device)
        found = []
        for logits in said:
            found.append(reaching.clamp_min(self.floor))
            reaching = reaching * (1 - self.leave(logits))
        return found


class HeadsCrossEntropy(Objective):
    """Σ_k L_k over the early exits, L the task's loss; what the backbone says may be cached.

    The cache is right only where a sample's image never changes, so it asks for no augmentation.

    Args:
        model: heads on a frozen backbone.
        cache: where its features lie; None computes them anew.
        teaching: distillation from the final softmax or from deeper heads; None: labels alone.
        survivors: weights of the samples at each head; None: all the same.
        classify: train the backbone's own classifier too, on the last block's frozen state.
    """

    def __init__(
        self,
        model: MultiExitModel,
        cache: FeatureCache | None = None,
        *,
        teaching: Teaching | None = None,
        survivors: Survivors | None = None,
        classify: bool = False,
    ) -> None:
        super().__init__(model)
        if survivors is not None and model.config.num_classes == 1:
            raise OfframpError("survivors are told by confidence, which needs classes")
        self.cache, self.teaching, self.survivors = cache, teaching, survivors
        self.classify = classify
        self.features = FrozenFeatures(model, cache, keep_last=classify)

    @property
    def needs_images(self) -> bool:
        return not self.features.complete

    def prepare(self, images: EveryImage) -> None:
        self.features.prepare(images)

    def close(self) -> None:
        if self.cache is not None:
            self.cache.clear()

    def answers(self, features: Features) -> list[NamedTuple]:
        """What every early head says."""
        return early_answers(self.model, features)

    def forward(self, step: Step) -> dict[str, Tensor]:
        return self.losses(self.features.of(step), step)

    def answers_to(self, batch: Batch) -> list[NamedTuple]:
        device = next(self.model.parameters()).device
        features = self.features.of(batch._replace(images=batch.images.to(device)))
        return [*self.answers(features), Outputs(self.final(features))]

    def final(self, features: Features) -> Tensor:
        """Logits (B, C) of the final exit."""
        return self.model.chain.finish(*features.last) if self.classify else features.final

    def losses(self, features: Features, step: Step) -> dict[str, Tensor]:
        """Features and targets → scalars by name."""
        outputs = self.answers(features)
        said = [output[0] for output in outputs]
        final = self.final(features)
        weights: list[Tensor | None] = [None] * len(said)
        if self.survivors is not None:
            weights = list(self.survivors.weights(said))
        losses = [
            self.task_loss(logits, step.targets, w) for logits, w in zip(said, weights, strict=True)
        ]
        if self.teaching is not None:
            losses = taught(losses, [*said, final], self.teaching, weights)
        values: dict[str, Tensor] = {}
        if self.classify:
            values["final"] = self.task_loss(final, step.targets)
        learned = certainty_loss(self.model.task, outputs, step.targets)
        if learned is not None:
            values["certainty"] = learned
        return {"loss": torch.stack([*losses, *values.values()]).sum(), **values}


@register_recipe("frozen")
class Frozen(Caching):
    """Train the heads only; the backbone, and so the final answer, stays what it was."""

    finetune: StageSettings = settings(epochs=0)
    heads: StageSettings = settings()
    teaching: Teaching | None = Field(
        default=None, description="distillation, for instance from the final softmax"
    )
    survivors: Survivors | None = Field(
        default=None, description="weight samples by whether earlier heads let them through"
    )
    classifier: bool = Field(
        default=False,
        description="train the backbone's classifier too, on its frozen trunk: for another task",
    )

    def objective(self, model: MultiExitModel, run: Path) -> Objective:
        """The loss of the stage ``heads``."""
        return HeadsCrossEntropy(
            model,
            self.cache(run),
            teaching=self.teaching,
            survivors=self.survivors,
            classify=self.classifier,
        )

    def trains(self, model: MultiExitModel) -> Parameters:
        """The heads, and the backbone's classifier where asked for."""
        return [*exits(model), *(classifier(model) if self.classifier else [])]

    def heads_stage(self) -> Stage:
        """Train the heads alone."""
        return Stage(
            "heads",
            self.heads,
            self.objective,
            trains=self.trains,
            fixed_images=self.cache_gb is not None,
        )

    def stages(self, model: MultiExitModel) -> list[Stage]:
        return [finetune_stage(self.finetune), self.heads_stage()]
