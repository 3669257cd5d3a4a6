"""``jei_dnn``: gates and heads learned together on a backbone that stays as it is.

Regol, Chataoui and Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network",
ICLR 2024, arXiv 2310.09163. Where the released code does something else than it means to, an option
offers both and the sounder one is the default (see `Turns`). Unlike there, the frozen backbone
stays in evaluation mode, without drop path.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from offramp.exits.gated import gates
from offramp.model import MultiExitModel
from offramp.training.bilevel import GatesAndHeads, Turns
from offramp.training.caching import Caching
from offramp.training.kept_features import Shelf
from offramp.training.recipe import (
    Objective,
    Stage,
    StageSettings,
    register_recipe,
    settings,
)
from offramp.training.recipes.finetune import finetune_stage
from offramp.training.tradeoffs import forget, keeper, relative_costs
from offramp.training.trained import Parameters, exits
from offramp.training.warm_up import WarmUp


def heads(model: MultiExitModel) -> Parameters:
    """The early heads without their gates."""
    without = {id(parameter) for parameter in gates(model)}
    return [parameter for parameter in exits(model) if id(parameter) not in without]


@register_recipe("jei_dnn")
class JEIDNN(Caching):
    """Heads alone, then gates and heads in turn: Σ p_l (CE_l + λ c_l), one model per price λ.

    The defaults are the released ones: SGD 0.01, momentum 0.9, decay 5e-4, a warm-up that ends
    exit by exit, cosine to 2e-4. With several ``tradeoffs`` each starts from the model of the one
    before and is kept in RUN/tradeoffs; RUN itself is the last.
    """

    tasks = ("classification",)

    finetune: StageSettings = settings(epochs=0)
    warmup: StageSettings = settings(
        epochs=6,
        optimizer="momentum",
        lr=0.01,
        weight_decay=5e-4,
        sched="constant",
        clip_grad=None,
    )
    warm_up: Literal["dynamic", "fixed"] = Field(
        default="dynamic",
        description="stop each head when it gets no better on the validation split, or none",
    )
    patience: int = Field(default=2, gt=0, description="dynamic: epochs without getting better")
    joint: StageSettings = settings(
        epochs=10,
        optimizer="momentum",
        lr=0.01,
        min_lr=2e-4,
        weight_decay=5e-4,
        sched="cosine",
        clip_grad=None,
    )
    tradeoffs: list[float] = Field(
        default=[0.7], min_length=1, description="λ: what the full model's cost is worth in loss"
    )
    following: int | None = Field(
        default=None, gt=0, description="epochs of every λ after the first; as many when omitted"
    )
    costs: str = Field(
        default="macs",
        description="macs, time (measured here), blocks (l/L), or a cost table's file",
    )
    gate_rate: float = Field(
        default=1.0,
        gt=0,
        description="learning rate of the gates over the heads'; a gate has five weights, which "
        "with Adam move by one rate a step",
    )
    turns: Turns = Field(default_factory=Turns)

    @field_validator("tradeoffs")
    @classmethod
    def _sound(cls, value: list[float]) -> list[float]:
        if any(price < 0 for price in value) or len(set(value)) < len(value):
            raise ValueError("must be different numbers that are not negative")
        return value

    def stages(self, model: MultiExitModel) -> list[Stage]:
        shelf, fixed = Shelf(self.cache), self.cache_gb is not None
        found = [
            finetune_stage(self.finetune),
            Stage("warmup", self.warmup, self._warm_up(shelf), heads, fixed),
        ]
        for place, tradeoff in enumerate(self.tradeoffs):
            later = place > 0 and self.following is not None
            options = self.joint.model_copy(update={"epochs": self.following} if later else {})
            name = "joint" if len(self.tradeoffs) == 1 else f"joint {tradeoff:g}"
            build = partial(self._joint, shelf=shelf, tradeoff=tradeoff, epochs=options.epochs)
            found.append(Stage(name, options, build, exits, fixed, rates=self._rates))
        return found

    def _rates(self, model: MultiExitModel) -> list[tuple[Parameters, float]]:
        return [(gates(model), self.gate_rate)]

    def _warm_up(self, shelf: Shelf) -> Callable[[MultiExitModel, Path], Objective]:
        def build(model: MultiExitModel, run: Path) -> Objective:
            return WarmUp(
                model,
                shelf.features(model, run),
                last=False,
                patience=self.patience if self.warm_up == "dynamic" else None,
                epochs=self.warmup.epochs,
            )

        return build

    def _joint(
        self, model: MultiExitModel, run: Path, *, shelf: Shelf, tradeoff: float, epochs: int
    ) -> Objective:
        sweep = len(self.tradeoffs) > 1
        return GatesAndHeads(
            model,
            shelf.features(model, run),
            last=tradeoff == self.tradeoffs[-1],
            turns=self.turns,
            costs=relative_costs(model, self.costs, run),
            tradeoff=tradeoff,
            epochs=epochs,
            done=keeper(run, tradeoff) if sweep else forget,
        )
