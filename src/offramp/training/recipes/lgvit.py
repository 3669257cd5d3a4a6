"""``lgvit``: LGViT's two stages (Xu et al., ACM MM 2023, arXiv 2308.00255).

Stage 1 trains everything end to end, stage 2 freezes the backbone and lets it, and the deeper
heads, teach the others. Where the released code and the paper or good practice part, an option
offers both and the sounder one is the default.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from offramp.chains import State, Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.lgvit import GAH, LGViTExit
from offramp.model import MultiExitModel
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
from offramp.training.recipes.finetune import finetune_stage
from offramp.training.recipes.frozen import FrozenObjective
from offramp.training.recipes.joint import exit_weights
from offramp.training.trained import exits

Strategy = Literal["normal", "weighted", "alternating", "alternating_weighted"]


class EndToEnd(Objective):
    """Stage 1: all exits from step to step, or every other step the final classifier alone.

    ``alternating_weighted`` (LGViT): even steps L = CE_L; odd steps L = Σ i·CE_i / Σ i over the
    exits' 1-based blocks i and the depth. ``alternating`` takes the plain mean on odd steps,
    ``weighted`` and ``normal`` the odd formula at each step. ``distil`` adds, on steps with all
    exits, that share of self-distillation from the detached final prediction (not in the paper).
    """

    def __init__(
        self, model: MultiExitModel, strategy: Strategy, distil: float, temperature: float
    ) -> None:
        super().__init__(model)
        self.alternating = strategy.startswith("alternating")
        self.weights = exit_weights(
            "linear" if strategy.endswith("weighted") else "uniform", model.blocks
        )
        self.distil, self.temperature = distil, temperature

    def forward(self, step: Step) -> dict[str, Tensor]:
        if self.alternating and step.number % 2 == 0:
            return {"loss": self.task_loss(self.model.chain(step.images), step.targets)}
        said = [outputs[0] for outputs in self.model(step.images)]
        losses = [self.task_loss(logits, step.targets) for logits in said]
        final = losses[-1]
        if self.distil:
            losses = [
                (1 - self.distil) * loss + self.distil * self._distillation(logits, said[-1])
                for loss, logits in zip(losses[:-1], said[:-1], strict=True)
            ] + [final]
        total = sum(w * loss for w, loss in zip(self.weights, losses, strict=True))
        return {"loss": torch.as_tensor(total), "final": final}

    def _distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        return prediction_distillation(student, teacher.detach(), temperature=self.temperature)


class Distillation(BaseModel):
    """Weights and switches of the second stage's loss."""

    model_config = ConfigDict(extra="forbid")

    alpha: float = Field(default=0.3, ge=0, le=1, description="share of prediction distillation")
    temperature: float = Field(default=2.0, gt=0, description="T of prediction distillation")
    hete: float = Field(default=0.01, ge=0, description="weight of the backbone's lesson")
    homo: float = Field(default=0.01, ge=0, description="weight of the deeper heads' lesson")
    teacher_norm: bool = Field(
        default=True, description="final norm before the teacher's classifier; released: false"
    )
    detach_teacher: bool = Field(
        default=True, description="no gradient into the teaching heads; released: false"
    )
    reduction: Literal["batch", "elements"] = Field(
        default="batch", description="divide the KL by B, or by B·C as released"
    )


class SelfDistillation(FrozenObjective):
    """Stage 2: (1−a)·Σ CE + a·Σ KD + hete·L_hete + homo·L_homo, over the early heads.

    The frozen final classifier teaches every prediction; the last block's patches teach the
    features of the first and last head of each kind; the last head of each kind teaches the
    others of its kind (features for LPH, un-normalised Gram matrices for GAH).

    Features can only be compared where they live in one space. In a pyramid, whose width and grid
    change from stage to stage, heads of one kind are therefore grouped by the shape of their
    tokens: the last head of each group teaches its group, and the last block teaches the first
    and last head of the groups on tokens shaped like its own. Heads left without a lesson in
    features, as most of Swin's, learn from labels and the final prediction. (The released code
    distils no features for Swin at all.)
    """

    def __init__(self, model: MultiExitModel, options: Distillation) -> None:
        super().__init__(model)
        self.options = options
        members: dict[object, list[int]] = {}
        for k, head in enumerate(model.heads):
            if not isinstance(head, LGViTExit):
                raise OfframpError(
                    f"recipe lgvit distils features of lph and gah heads, "
                    f"but exits[{k}] is a {type(head).__name__} (use recipe joint or frozen)"
                )
            members.setdefault((type(head), *_shape(head.spec)), []).append(k)
        self.groups = list(members.values())
        last = _shape(model.chain.token_spec(len(model.chain) - 1))
        self.taught = [
            k
            for group in self.groups
            for k in dict.fromkeys((group[0], group[-1]))
            if _shape(model.heads[k].spec) == last
        ]

    def losses(self, states: list[State], step: Step) -> dict[str, Tensor]:
        chain, options = self.model.chain, self.options
        last = states[-1]
        with torch.no_grad():
            teacher = chain.finish(*last) if options.teacher_norm else chain.classify(*last)
            patches = chain.tokens(last, len(chain) - 1).patches
        heads = [head for head in self.model.heads if isinstance(head, LGViTExit)]
        tokens: list[Tokens] = [
            chain.tokens(state, block - 1)
            for state, block in zip(states, self.model.positions, strict=False)
        ]
        features = [head.features(t) for head, t in zip(heads, tokens, strict=True)]
        said = [
            head.classify(f, t).logits for head, f, t in zip(heads, features, tokens, strict=True)
        ]
        task = torch.stack([self.task_loss(z, step.targets) for z in said]).sum()
        prediction = torch.stack(
            [
                prediction_distillation(
                    z, teacher, temperature=options.temperature, reduction=options.reduction
                )
                for z in said
            ]
        ).sum()
        zero = task.new_zeros(())
        hete = self._heterogeneous(heads, features, patches) if options.hete else zero
        homo = self._homogeneous(features) if options.homo else zero
        loss = (1 - options.alpha) * task + options.alpha * prediction
        return {
            "loss": loss + options.hete * hete + options.homo * homo,
            "task": task,
            "prediction": prediction,
            "hete": hete,
            "homo": homo,
        }

    def _heterogeneous(
        self, heads: list[LGViTExit], features: list[Tensor], patches: Tensor
    ) -> Tensor:
        """Σ over the heads taught by the last block of K(F, aligned last-block patches)."""
        total = patches.new_zeros((), dtype=torch.float32)
        for k in self.taught:
            total = total + feature_divergence(features[k], heads[k].align(patches))
        return total

    def _homogeneous(self, features: list[Tensor]) -> Tensor:
        """Σ over groups of the distance of each head to the last of its group."""
        total = features[0].new_zeros((), dtype=torch.float32)
        for group in self.groups:
            relation = gram if isinstance(self.model.heads[group[0]], GAH) else _same
            last = features[group[-1]]
            teacher = relation((last.detach() if self.options.detach_teacher else last).float())
            for k in group[:-1]:
                total = total + F.mse_loss(relation(features[k].float()), teacher)
        return total


def feature_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """K(S, T) = (1/B) Σ_{b,n} KL(softmax_D(T) ‖ softmax_D(S)) for features (B, n, D)."""
    log_q = F.log_softmax(student.float(), dim=-1)
    p = F.softmax(teacher.float(), dim=-1)
    return F.kl_div(log_q, p, reduction="batchmean")


def gram(features: Tensor) -> Tensor:
    """G(F) = FᵀF per sample: (B, n, D) → (B, D, D); removes differing token counts."""
    return features.transpose(1, 2) @ features


def _same(features: Tensor) -> Tensor:
    return features


def _shape(spec: TokenSpec) -> tuple[int, tuple[int, int] | None]:
    """What features on these tokens have in common: width and grid."""
    return spec.width, spec.grid


@register_recipe("lgvit")
class LGViT(Recipe):
    """LGViT: end-to-end training, then heads alone with self-distillation; optional plain stage."""

    tasks = ("classification",)

    finetune: StageSettings = settings(epochs=0)
    end_to_end: StageSettings = settings(epochs=50)
    strategy: Strategy = Field(default="alternating_weighted", description="stage 1 losses")
    distil: float = Field(
        default=0.0, ge=0, le=1, description="self-distillation in stage 1 (0 in the paper)"
    )
    self_distillation: StageSettings = settings(epochs=50)
    distillation: Distillation = Field(default_factory=Distillation)

    def stages(self, model: MultiExitModel) -> list[Stage]:
        def first(model: MultiExitModel, run: Path) -> Objective:
            return EndToEnd(model, self.strategy, self.distil, self.distillation.temperature)

        def second(model: MultiExitModel, run: Path) -> Objective:
            return SelfDistillation(model, self.distillation)

        return [
            finetune_stage(self.finetune),
            Stage("end_to_end", self.end_to_end, first),
            Stage("self_distillation", self.self_distillation, second, exits),
        ]
