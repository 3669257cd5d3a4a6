"""What a recipe is: stages, each with an objective, the parameters it trains and its settings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.data import Augment, Batch, Split
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.registry import Registry
from offramp.training.context import Context
from offramp.training.every_image import EveryImage
from offramp.training.trained import Rates, Trains, everything, one_rate

if TYPE_CHECKING:
    from offramp.training.validation import Figures


class StageSettings(BaseModel):
    """Numbers of one training stage."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(default=10, ge=0, description="passes over the train split; 0 skips")
    batch_size: int = Field(default=64, gt=0, description="samples per device and step")
    optimizer: str = Field(default="adamw", description="timm optimizer name")
    lr: float = Field(default=5e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="not applied to norms and biases")
    layer_decay: float | None = Field(default=None, description="learning-rate decay per layer")
    sched: Literal["cosine", "linear", "constant", "step"] = Field(
        default="linear", description="to min_lr; step: to a tenth at each milestone"
    )
    milestones: list[float] = Field(
        default=[0.5, 0.75], description="shares of the stage at which sched: step drops the rate"
    )
    min_lr: float = Field(default=0.0, ge=0, description="where cosine and linear end")
    warmup_epochs: float = Field(default=0.0, ge=0, description="linear warm-up")
    clip_grad: float | None = Field(default=1.0, description="maximal gradient norm")
    ema_decay: float | None = Field(
        default=None, description="decay of averaged weights; off: null"
    )
    augment: Augment = Field(default_factory=Augment, description="training images")

    @field_validator("milestones")
    @classmethod
    def _within(cls, value: list[float]) -> list[float]:
        if value != sorted(value) or not all(0 < share < 1 for share in value):
            raise ValueError("must be shares of the stage in rising order, each between 0 and 1")
        return value


class Step(NamedTuple):
    """One batch as an objective sees it; ``targets`` are labels (B,), soft targets (B, C), or the
    numbers (B,) of a regression. ``images`` are (B, 3, H, W), or (B, 0) where the objective needs
    none (`Objective.needs_images`)."""

    images: Tensor
    targets: Tensor
    ids: Tensor
    number: int
    """Optimizer steps since the stage began."""
    epoch: int = 0


class Objective(nn.Module, ABC):
    """A loss over a multi-exit model, as a module so that any launcher can wrap it.

    What it learns on its way besides the model's weights belongs in buffers of its own, which are
    part of a checkpoint and the same in all processes.
    """

    def __init__(self, model: MultiExitModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """A batch → scalars by name; ``loss`` is the one that is minimised."""

    @property
    def needs_images(self) -> bool:
        """Whether steps need images; False where everything is known from ``prepare``."""
        return True

    def prepare(self, images: EveryImage) -> None:
        """Look at every image of training and validation, unaugmented and in order.

        Called before the first step, also when a stage is resumed, so it must be a pure function of
        model and images.
        """
        return

    def answers_to(self, batch: Batch) -> Sequence[NamedTuple]:
        """What every exit says of a batch: of the images, unless `prepare` has seen them."""
        said: list[NamedTuple] = self.model(batch.images)
        return said

    def hear(self, said: Sequence[NamedTuple], targets: Tensor) -> None:
        """Listen to what every exit says about a batch of the validation split, which is gone
        through after each epoch; in the main process only."""
        return

    def after_epoch(self, figures: "Sequence[Figures]") -> dict[str, float]:
        """Adjust to the exits' figures on the validation split, in the main process only; returns
        what to log besides."""
        return {}

    @property
    def finished(self) -> bool:
        """Whether the stage may end with this epoch."""
        return False

    def task_loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean loss of one exit's answers (B, C) against the targets of a `Step`: the task's own,
        cross-entropy or (smooth) L1. ``weights`` (B,) ≥ 0 weight the samples' mean."""
        return weighted_mean(self.model.task.losses(logits, targets), weights)

    def close(self) -> None:
        """Give back what the stage used besides memory; called when it ends, however it ends."""
        return


Order = Callable[[int], NDArray[np.int64]]
"""Epoch → positions in the train split in the order in which they are met, a pure function."""


@dataclass(frozen=True)
class Course:
    """What decides in which order a stage meets its samples.

    Attributes:
        context: model, data and folder of the run.
        stage: name of the stage.
        split: the train split.
        seed: the stage's.
        steps: optimizer steps in an epoch.
        batch: samples met in one step, over all devices.
        first: whether the stage begins now; otherwise it is resumed, and what must be as it was
            at its beginning is to be read from the run's folder.
    """

    context: Context
    stage: str
    split: Split
    seed: int
    steps: int
    batch: int
    first: bool


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: shown and logged.
        settings: epochs, batch size, optimizer and augmentation.
        objective: builds the loss over a model; the path is the run's folder, for caches.
        trains: what receives gradient; the rest is frozen and stays in eval mode.
        fixed_images: it needs every image to look the same in every epoch, as caches do.
        order: in which samples are met; None shuffles them every epoch.
        rates: parameters whose learning rate is a multiple of the stage's.
    """

    name: str
    settings: StageSettings
    objective: Callable[[MultiExitModel, Path], Objective]
    trains: Trains = everything
    fixed_images: bool = False
    order: Callable[[Course], Order] | None = None
    rates: Rates = one_rate


class Recipe(BaseModel, ABC):
    """How a dynamic model is trained. Options are fields; ``stages`` turns them into work.

    ``tasks`` are the kinds of answer it can teach; a recipe that distils predictions needs classes.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _amend(cls, values: Any) -> Any:
        """A section of settings changes what it names; the rest of the recipe's own stays."""
        if not isinstance(values, dict):
            return values
        return values | {
            name: amended(cls.model_fields[name], given)
            for name, given in values.items()
            if isinstance(given, dict) and name in cls.model_fields
        }

    @abstractmethod
    def stages(self, model: MultiExitModel) -> list[Stage]:
        """The stages in order; a model has as many layers to train as it has exits."""


RECIPES: Registry[type[Recipe]] = Registry("recipe")
register_recipe = RECIPES.register


def settings(**values: Any) -> Any:
    """A field of a recipe that holds stage settings with other defaults than `StageSettings`."""
    return Field(default_factory=lambda: StageSettings(**values))


def amended(field: FieldInfo, given: dict[str, Any]) -> dict[str, Any]:
    """What a section says, over what the field's default says besides."""
    default = field.get_default(call_default_factory=True, validated_data={})
    if not isinstance(default, BaseModel):
        return given
    return {name: getattr(default, name) for name in default.model_fields_set} | given


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of values (B,), weighted by ``weights`` (B,) ≥ 0; 0 where all weights are 0."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum().clamp_min(1e-6)


def prediction_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    reduction: Literal["batch", "elements"] = "batch",
    weights: Tensor | None = None,
) -> Tensor:
    """T² · KL(teacher ‖ student) of softened predictions (B, C), in float32.

    ``batch`` divides by B (Hinton et al., 2015), or weights the samples by ``weights`` (B,);
    ``elements`` by B·C, as LGViT's released code does, C times weaker. The teacher is not detached
    here.
    """
    if student.shape[-1] == 1:
        raise OfframpError(
            "distilling predictions needs classes, but this model answers with one number"
        )
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.softmax(teacher.float() / temperature, dim=-1)
    kl = weighted_mean(F.kl_div(log_q, p, reduction="none").sum(dim=-1), weights)
    return temperature**2 * kl / (1 if reduction == "batch" else p.shape[-1])
