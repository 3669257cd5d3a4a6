"""``layer_wise``: exit after exit, each with the blocks below it, which then stay as they are.

The third regime of Bakhtiarnia, Zhang and Iosifidis, "Multi-Exit Vision Transformer for Dynamic
Inference", BMVC 2021, arXiv 2106.15183.
"""

from functools import partial
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
from offramp.training.trained import layers


class OneExit(Objective):
    """The loss of exit k alone; nothing behind it is run."""

    def __init__(self, model: MultiExitModel, run: Path, *, k: int) -> None:
        super().__init__(model)
        self.segments = model.segments()[: k + 1]

    def forward(self, step: Step) -> dict[str, Tensor]:
        inputs: tuple[Tensor, ...] = (step.images,)
        for segment in self.segments:
            inputs, outputs = segment(*inputs)
        return {"loss": self.task_loss(outputs[0], step.targets)}


@register_recipe("layer_wise")
class LayerWise(Recipe):
    """Exit 1 with the blocks below it, then exit 2 with the next blocks, … then the final exit."""

    layer: StageSettings = settings(epochs=10, optimizer="adam", lr=1e-4)

    def stages(self, model: MultiExitModel) -> list[Stage]:
        return [
            Stage(name, self.layer, partial(OneExit, k=k), trains=partial(layers, k=k))
            for k, name in enumerate(model.exit_names)
        ]
