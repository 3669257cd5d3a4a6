"""``finetune``: the plain backbone with its own classifier; early heads are left alone."""

from pathlib import Path

from torch import Tensor

from offramp.model import MultiExitModel
from offramp.training.recipe import (
    Objective,
    Recipe,
    Stage,
    StageSettings,
    Step,
    register_recipe,
    settings,
)
from offramp.training.trained import backbone


class FinalCrossEntropy(Objective):
    """The task's loss, cross-entropy for classes, of the backbone's own classifier."""

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"loss": self.task_loss(self.model.chain(step.images), step.targets)}


def finetune_stage(options: StageSettings) -> Stage:
    """Train the backbone alone."""

    def objective(model: MultiExitModel, run: Path) -> Objective:
        return FinalCrossEntropy(model)

    return Stage("finetune", options, objective, trains=backbone)


@register_recipe("finetune")
class Finetune(Recipe):
    """Fine-tune the plain backbone on the task: the full model every speed-up is held against."""

    finetune: StageSettings = settings()

    def stages(self, model: MultiExitModel) -> list[Stage]:
        return [finetune_stage(self.finetune)]
