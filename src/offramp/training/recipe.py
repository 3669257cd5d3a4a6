"""What a recipe is: stages, each with an objective, the parameters it trains and its settings."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.data import Augment
from offramp.model import MultiExitModel
from offramp.registry import Registry

Part = Literal["backbone", "exits"]


class StageSettings(BaseModel):
    """Numbers of one training stage."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(default=10, ge=0, description="passes over the train split; 0 skips")
    batch_size: int = Field(default=64, gt=0, description="samples per device and step")
    optimizer: str = Field(default="adamw", description="timm optimizer name")
    lr: float = Field(default=5e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="not applied to norms and biases")
    layer_decay: float | None = Field(default=None, description="learning-rate decay per layer")
    sched: Literal["cosine", "linear", "constant"] = Field(default="linear", description="to 0")
    warmup_epochs: float = Field(default=0.0, ge=0, description="linear warm-up")
    clip_grad: float | None = Field(default=1.0, description="maximal gradient norm")
    ema_decay: float | None = Field(
        default=None, description="decay of averaged weights; off: null"
    )
    augment: Augment = Field(default_factory=Augment, description="training images")


class Step(NamedTuple):
    """One batch as an objective sees it; ``targets`` are labels (B,) or soft targets (B, C)."""

    images: Tensor
    targets: Tensor
    ids: Tensor
    number: int
    """Optimizer steps since the stage began."""


class Objective(nn.Module, ABC):
    """A loss over a multi-exit model, as a module so that any launcher can wrap it."""

    def __init__(self, model: MultiExitModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, step: Step) -> dict[str, Tensor]:
        """A batch → scalars by name; ``loss`` is the one that is minimised."""

    def task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of one exit's answers (B, C) against the targets of a `Step`."""
        return cross_entropy(logits, targets)

    def close(self) -> None:
        """Give back what the stage used besides memory; called when it ends, however it ends."""
        return


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: shown and logged.
        settings: epochs, batch size, optimizer and augmentation.
        objective: builds the loss over a model; the path is the run's folder, for caches.
        trains: the parts that receive gradient; the others are frozen and stay in eval mode.
        fixed_images: it needs every image to look the same in every epoch, as caches do.
    """

    name: str
    settings: StageSettings
    objective: Callable[[MultiExitModel, Path], Objective]
    trains: frozenset[Part] = frozenset(("backbone", "exits"))
    fixed_images: bool = False


class Recipe(BaseModel, ABC):
    """How a dynamic model is trained. Options are fields; ``stages`` turns them into work."""

    model_config = ConfigDict(extra="forbid")

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages in order."""


RECIPES: Registry[type[Recipe]] = Registry("recipe")
register_recipe = RECIPES.register


def settings(**values: Any) -> Any:
    """A field of a recipe that holds stage settings with other defaults than `StageSettings`."""
    return Field(default_factory=lambda: StageSettings(**values))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in float32; targets are labels (B,) or soft targets (B, C)."""
    return F.cross_entropy(logits.float(), targets)


def prediction_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    reduction: Literal["batch", "elements"] = "batch",
) -> Tensor:
    """T² · KL(teacher ‖ student) of softened predictions (B, C), in float32.

    ``batch`` divides by B (Hinton et al., 2015); ``elements`` by B·C, as LGViT's released code
    does, C times weaker. The teacher is not detached here.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.softmax(teacher.float() / temperature, dim=-1)
    kl = F.kl_div(log_q, p, reduction="sum")
    return temperature**2 * kl / (len(p) if reduction == "batch" else p.numel())
