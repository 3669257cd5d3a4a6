"""``evo_levit``: Evo-LeViT with its class token's heads (Xu et al., AAAI 2022)."""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.training.passage import passage
from offramp.training.recipe import (
    Objective,
    Recipe,
    Stage,
    StageSettings,
    Step,
    register_recipe,
    settings,
)
from offramp.training.recipes.joint import Weighting, exit_weights
from offramp.zoo.evo_levit import EvoLevit


class FourHeads(Objective):
    """Σ_k w_k · L_k over all exits, the final one's ¼ · Σ L over its four heads.

    Two heads read the mean patch and two the class token, whose attention ranks the patches. In
    the first ``layered`` epochs every block selects and trade-offs are ½; after that a stage
    selects once and they are learned.
    """

    def __init__(self, model: MultiExitModel, layered: int, weighting: str) -> None:
        super().__init__(model)
        if not isinstance(model.backbone, EvoLevit) or model.backbone.head_cls is None:
            raise OfframpError(
                "recipe evo_levit trains Evo-LeViT with its class token's heads: set "
                "model.backbone to one of evo_levit_* and model.backbone_args.auxiliary to true"
            )
        self.layered, self.weights = layered, exit_weights(weighting, model.blocks)

    @property
    def backbone(self) -> EvoLevit:
        backbone = self.model.backbone
        assert isinstance(backbone, EvoLevit)
        return backbone

    def forward(self, step: Step) -> dict[str, Tensor]:
        self._settle(layered=step.epoch < self.layered)
        states, said = passage(self.model, step.images)
        answers = self.backbone.answers(*states[-1])
        mean, mean_twin, spoken, spoken_twin = (self.task_loss(a, step.targets) for a in answers)
        early = [self.task_loss(logits, step.targets) for logits in said[:-1]]
        losses = torch.stack([*early, (mean + mean_twin + spoken + spoken_twin) / 4])
        loss = (losses * losses.new_tensor(self.weights)).sum()
        return {
            "loss": loss,
            "average": (mean + mean_twin) / 2,
            "class": (spoken + spoken_twin) / 2,
        }

    def close(self) -> None:
        self._settle(layered=False)

    def _settle(self, *, layered: bool) -> None:
        self.backbone.select_by("layer" if layered else "stage")
        self.backbone.learn_tradeoffs(not layered)


@register_recipe("evo_levit")
class EvoLevitRecipe(Recipe):
    """Evo-LeViT from scratch: layers select first, stages later, with learned trade-offs.

    Published with a teacher, whose labels one head of each pair learns, and with gradients clipped
    in proportion to weights; here all four heads learn the data's labels and norms are clipped.
    """

    evo_levit: StageSettings = settings(
        epochs=300, lr=5e-4, min_lr=1e-5, weight_decay=0.025, sched="cosine", warmup_epochs=5
    )
    layered: float = Field(
        default=2 / 3, ge=0, le=1, description="share of the epochs that select in every layer"
    )
    weighting: Weighting = Field(default="uniform", description="weights of the exits' losses")

    def stages(self, model: MultiExitModel) -> list[Stage]:
        def objective(model: MultiExitModel, run: Path) -> Objective:
            return FourHeads(model, round(self.layered * self.evo_levit.epochs), self.weighting)

        return [Stage("evo_levit", self.evo_levit, objective)]
