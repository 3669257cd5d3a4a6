"""``evo_vit``: selection in every layer first, once per stage later (Xu et al., AAAI 2022)."""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.reducers.evo_vit import EvoViT
from offramp.training.passage import passage, reducer_of
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


class LayerToStage(Objective):
    """Σ_k w_k · L_k over all exits, the final one's ½·L(average) + ½·L(class token).

    The second half keeps the class token's attention meaningful, which ranks the tokens: without
    it nothing would train a class token whose answer is not used.
    """

    def __init__(self, model: MultiExitModel, layered: int, weighting: str) -> None:
        super().__init__(model)
        self.links = (reducer_of(model, EvoViT, "evo_vit"),)  # a tuple is not registered twice
        self.layered, self.weights = layered, exit_weights(weighting, model.blocks)
        if self.reducer.head is None:
            raise OfframpError("recipe evo_vit trains the average head: use classifier: average")
        self.finally_by = self.reducer.selection

    @property
    def reducer(self) -> EvoViT:
        reducer = self.links[0].reducer
        assert isinstance(reducer, EvoViT)
        return reducer

    def forward(self, step: Step) -> dict[str, Tensor]:
        self.reducer.selection = "layer" if step.epoch < self.layered else self.finally_by
        states, said = passage(self.model, step.images)
        auxiliary = self.reducer.auxiliary(self.links[0].base, *states[-1])
        *early, average = (self.task_loss(logits, step.targets) for logits in said)
        spoken = self.task_loss(auxiliary, step.targets)
        losses = torch.stack([*early, (average + spoken) / 2])
        loss = (losses * losses.new_tensor(self.weights)).sum()
        return {"loss": loss, "average": average, "class": spoken}

    def close(self) -> None:
        self.reducer.selection = self.finally_by


@register_recipe("evo_vit")
class EvoViTRecipe(Recipe):
    """Evo-ViT: from scratch or from a trained backbone, layer-wise first, then stage-wise.

    Stage-wise selection sorts twice instead of eight times and so trains faster, too.
    """

    evo_vit: StageSettings = settings(
        epochs=300, lr=5e-4, weight_decay=0.05, sched="cosine", warmup_epochs=5, clip_grad=None
    )
    layered: float = Field(
        default=2 / 3, ge=0, le=1, description="share of the epochs that select in every layer"
    )
    weighting: Weighting = Field(default="uniform", description="weights of the exits' losses")

    def stages(self, model: MultiExitModel) -> list[Stage]:
        def objective(model: MultiExitModel, run: Path) -> Objective:
            epochs = round(self.layered * self.evo_vit.epochs)
            return LayerToStage(model, epochs, self.weighting)

        return [Stage("evo_vit", self.evo_vit, objective)]
