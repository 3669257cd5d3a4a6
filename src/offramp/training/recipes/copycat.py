"""``copycat``: heads imitate the backbone's own answers first, then learn from labels.

The fine-tuning of Bakhtiarnia, Zhang and Iosifidis, "Single-Layer Vision Transformers for More
Accurate Early Exits with Less Overhead", Neural Networks 2022, arXiv 2105.09121 (Copycat SL-ViT).
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.feature_cache import FeatureCache
from offramp.training.features import Features
from offramp.training.recipe import (
    Objective,
    Stage,
    StageSettings,
    Step,
    register_recipe,
    settings,
)
from offramp.training.recipes.finetune import finetune_stage
from offramp.training.recipes.frozen import Frozen, HeadsCrossEntropy
from offramp.training.trained import exits

Answer = Literal["hard", "soft"]


class Imitation(HeadsCrossEntropy):
    """Σ_k CE_k against the final exit's answers; labels are not looked at."""

    def __init__(self, model: MultiExitModel, cache: FeatureCache | None, answer: Answer) -> None:
        super().__init__(model, cache)
        self.answer = answer

    def losses(self, features: Features, step: Step) -> dict[str, Tensor]:
        final = features.final.float()
        said = final.argmax(dim=-1) if self.answer == "hard" else final.softmax(dim=-1)
        return super().losses(features, step._replace(targets=said))


@register_recipe("copycat")
class Copycat(Frozen):
    """Heads alone: first on the final exit's answers to the training images, then on labels."""

    tasks = ("classification",)

    imitate: StageSettings = settings()
    answer: Answer = Field(default="hard", description="its label, or its whole softmax")

    def imitation(self, model: MultiExitModel, run: Path) -> Objective:
        """The loss of the stage ``imitate``."""
        return Imitation(model, self.cache(run), self.answer)

    def stages(self, model: MultiExitModel) -> list[Stage]:
        imitate = Stage(
            "imitate",
            self.imitate,
            self.imitation,
            trains=exits,
            fixed_images=self.cache_gb is not None,
        )
        return [finetune_stage(self.finetune), imitate, self.heads_stage()]
