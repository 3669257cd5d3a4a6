"""``dynamicvit``: predictors first, then predictors and backbone under the lessons of the
unpruned model (Rao et al., NeurIPS 2021)."""

import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from offramp.chains.vit import ViTChain
from offramp.model import MultiExitModel
from offramp.reducers.dynamicvit import DynamicViT
from offramp.training.passage import passage, reducer_of
from offramp.training.recipe import (
    Objective,
    Recipe,
    Stage,
    StageSettings,
    Step,
    prediction_distillation,
    register_recipe,
    settings,
)
from offramp.training.recipes.joint import Weighting, exit_weights
from offramp.training.trained import Parameters


class Lessons(BaseModel):
    """Weights of the loss beside the task's."""

    model_config = ConfigDict(extra="forbid")

    ratio: float = Field(default=2.0, ge=0, description="mean kept share against its target")
    prediction: float = Field(default=0.5, ge=0, description="KL from the unpruned model")
    tokens: float = Field(default=0.5, ge=0, description="kept tokens against the unpruned ones")


class SparseDistillation(Objective):
    """L = Σ_k w_k·L_k + λ_r·ratio + λ_p·KL(teacher ‖ student) + λ_t·MSE of kept, normed tokens.

    ratio = mean over stages s and images of (kept share − ρ_s)². The teacher is the backbone as it
    is when the recipe begins, without the reducer, so it should have been trained.
    """

    def __init__(self, model: MultiExitModel, lessons: Lessons, weighting: str) -> None:
        super().__init__(model)
        links = reducer_of(model, DynamicViT, "dynamicvit")
        self.lessons, self.weights = lessons, exit_weights(weighting, model.blocks)
        self.teacher: ViTChain = copy.deepcopy(links.base).requires_grad_(False)
        self.links = (links,)  # a tuple is not registered twice

    def forward(self, step: Step) -> dict[str, Tensor]:
        self.teacher.eval()
        links, lessons = self.links[0], self.lessons
        reducer = links.reducer
        assert isinstance(reducer, DynamicViT)
        states, said = passage(self.model, step.images)
        losses = torch.stack([self.task_loss(logits, step.targets) for logits in said])
        task = (losses * losses.new_tensor(self.weights)).sum()
        shares = torch.stack([states[i][1].mean(1) for i in reducer.blocks])  # (S, B)
        ratio = (shares - shares.new_tensor(reducer.rates).unsqueeze(1)).square().mean()
        with torch.no_grad():
            (taught,) = self.teacher.embed(step.images)
            for each in self.teacher.steps:
                (taught,) = each(taught)
            answer = self.teacher.finish(taught)
        prediction = prediction_distillation(said[-1], answer, temperature=1.0)
        tokens = self._tokens(links.base, states[-1], taught)
        loss = task + lessons.ratio * ratio
        loss = loss + lessons.prediction * prediction + lessons.tokens * tokens
        return {
            "loss": loss,
            "task": task,
            "ratio": ratio,
            "prediction": prediction,
            "tokens": tokens,
            "kept": shares[-1].mean(),
        }

    def _tokens(self, base: ViTChain, state: tuple[Tensor, ...], taught: Tensor) -> Tensor:
        """Mean squared distance of the kept patches to the teacher's, behind the final norms."""
        x, keep = state
        prefix = x.shape[1] - keep.shape[1]
        norms: list[Any] = [base.backbone.norm, self.teacher.backbone.norm]
        student, teacher = (
            norm(tokens)[:, prefix:].float()
            for norm, tokens in zip(norms, (x, taught), strict=True)
        )
        distance = (student - teacher).square().mean(-1)  # (B, N)
        return (distance * keep).sum() / keep.sum().clamp_min(1)


def predictors(model: MultiExitModel) -> Parameters:
    """The reducer's own parameters."""
    return list(reducer_of(model, DynamicViT, "dynamicvit").reducer.parameters())


def all_but_embeddings(model: MultiExitModel) -> Parameters:
    """Everything except class token and position table."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(("cls_token", "pos_embed"))
    ]


@register_recipe("dynamicvit")
class DynamicViTRecipe(Recipe):
    """DynamicViT: from a trained backbone, which also teaches; predictors learn ahead of it."""

    tasks = ("classification",)

    predictors: StageSettings = settings(epochs=5, lr=1e-3, weight_decay=0.05, sched="constant")
    dynamicvit: StageSettings = settings(epochs=25, lr=1e-3, weight_decay=0.05, sched="cosine")
    backbone_rate: float = Field(
        default=0.01, gt=0, description="the backbone's learning rate over the predictors'"
    )
    lessons: Lessons = Field(default_factory=Lessons)
    weighting: Weighting = Field(default="uniform", description="weights of the exits' losses")

    def stages(self, model: MultiExitModel) -> list[Stage]:
        def objective(model: MultiExitModel, run: Path) -> Objective:
            return SparseDistillation(model, self.lessons, self.weighting)

        def rates(model: MultiExitModel) -> list[tuple[Parameters, float]]:
            return [(list(model.backbone.parameters()), self.backbone_rate)]

        return [
            Stage("predictors", self.predictors, objective, predictors),
            Stage("dynamicvit", self.dynamicvit, objective, all_but_embeddings, rates=rates),
        ]
