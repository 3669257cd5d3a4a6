"""JEI-DNN's warm-up: heads alone, each until it stops getting better."""

from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.exits import Exit
from offramp.model import MultiExitModel
from offramp.training.features import Features
from offramp.training.gating import warm_up_weights
from offramp.training.kept_features import HeadsOnKeptFeatures, KeptFeatures
from offramp.training.recipe import Step
from offramp.training.validation import Figures


class WarmUp(HeadsOnKeptFeatures):
    """Σ_l (L - l + 1) CE_l over the early heads, and CE_L, a constant; gates are idle.

    Args:
        patience: a head that does not get better on the validation split for so many epochs gets
            its best weights back and stays as it is; the stage ends when all have. None: no head
            is stopped.
        epochs: of the stage; at its end heads that were still on their way get their best weights.
    """

    best: Tensor  # (L-1,) validation accuracy
    waited: Tensor  # (L-1,) epochs since
    resting: Tensor  # (L-1,) bool
    passed: Tensor  # () epochs

    def __init__(
        self,
        model: MultiExitModel,
        features: KeptFeatures,
        *,
        last: bool,
        patience: int | None,
        epochs: int,
    ) -> None:
        super().__init__(model, features, last=last)
        self.patience, self.epochs = patience, epochs
        early = len(model.exits)
        self.weights = warm_up_weights(early + 1)
        # Direct buffers are part of a checkpoint.
        self.register_buffer("best", torch.full((early,), -torch.inf))
        self.register_buffer("waited", torch.zeros(early, dtype=torch.int64))
        self.register_buffer("resting", torch.zeros(early, dtype=torch.bool))
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))
        if patience is not None:
            for k, head in enumerate(model.heads):
                self.register_buffer(f"best_{k}", _flat(head))

    def forward(self, step: Step) -> dict[str, Tensor]:
        for head, resting in zip(self.model.heads, self.resting.tolist(), strict=True):
            if resting:
                head.eval()  # so that no running statistics move
        return super().forward(step)

    def losses(self, features: Features, step: Step) -> dict[str, Tensor]:
        said = self.answers(features)
        total = self.task_loss(features.final, step.targets)
        for outputs, weight, rests in zip(said, self.weights, self.resting.tolist(), strict=False):
            if not rests:
                total = total + weight * self.task_loss(outputs[0], step.targets)
        return {"loss": total}

    @property
    def finished(self) -> bool:
        return bool(self.resting.all())

    def after_epoch(self, figures: Sequence[Figures]) -> dict[str, float]:
        if self.patience is None:
            return {}
        self.passed += 1
        for k, head in enumerate(self.model.heads):
            if not self.resting[k]:
                self._judge(k, head, figures[k][self.model.task.key])
        return {"resting": int(self.resting.sum())}

    def _judge(self, k: int, head: Exit, value: float) -> None:
        """Note a head's validation accuracy; stop it, or give it its best weights back."""
        kept = self.get_buffer(f"best_{k}")
        if value > self.best[k]:
            self.best[k], self.waited[k] = value, 0
            kept.copy_(_flat(head))
            return
        self.waited[k] += 1
        self.resting[k] = bool(self.waited[k] >= (self.patience or 0))
        if self.resting[k] or int(self.passed) >= self.epochs:
            _restore(head, kept)


def _flat(head: Exit) -> Tensor:
    """Weights and running statistics of a head as one vector."""
    return torch.cat([value.detach().float().flatten() for value in head.state_dict().values()])


def _restore(head: Exit, flat: Tensor) -> None:
    values = list(head.state_dict().values())
    for value, part in zip(values, flat.split([v.numel() for v in values]), strict=True):
        value.copy_(part.view_as(value))
