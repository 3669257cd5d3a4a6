"""Tasks: what an answer is, what it is worth, and in which numbers people read it.

Whatever chooses, proves or reports works on *worth*, a number per answer of which more is better,
and asks the task for the rest. So a task is the one place where classes and numbers differ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from offramp.errors import OfframpError
from offramp.registry import Registry

Z95 = 1.959964


class Target(BaseModel):
    """How a regression model reads its targets: it is trained on (y − mean) / std.

    A model's own outputs are in that unit; what leaves a runner, and stands in records, is y.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float = Field(default=0.0, description="of the training targets")
    std: float = Field(default=1.0, gt=0, description="of the training targets")
    smooth: float = Field(
        default=0.0, ge=0, description="errors below so many std count squared; 0: plain L1"
    )

    def restore(self, outputs: Tensor) -> Tensor:
        """Outputs of a model → values in the unit of the targets."""
        return outputs * self.std + self.mean


class Task(ABC):
    """A kind of answer.

    Attributes:
        name: name in the registry.
        targets: type of the labels of a data set.
        metric: what the value of an exit is called, and its key in JSON.
        unit: what a loss of it is counted in.
        scale: from a difference of worth to that unit.
        fewer: whether less of the metric is better.
        digits: decimals of the metric that people read.
    """

    name: ClassVar[str]
    targets: ClassVar[torch.dtype]
    metric: ClassVar[str]
    unit: ClassVar[str]
    scale: ClassVar[float]
    fewer: ClassVar[bool]
    digits: ClassVar[int]

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or Target()

    @property
    def key(self) -> str:
        return self.metric.lower()

    @property
    def axis(self) -> str:
        """The metric as a plot's axis names it."""
        return f"{self.metric} (less is better)" if self.fewer else f"{self.metric}, %"

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of outputs (B, C) as a model gives them, for training."""
        return self.losses(logits, targets).mean()

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample's outputs: (B, C) → (B,)."""

    @abstractmethod
    def rightness(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How right outputs (B, C) are, 1 … 0: what a learned certainty is trained on (B,)."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Answers (…, C) → what they say (…)."""

    @abstractmethod
    def worth(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """What each prediction is worth; more is better."""

    @abstractmethod
    def figures(self, prediction: Tensor, labels: Tensor) -> dict[str, float]:
        """Predictions and labels (N,) → the numbers that are reported, the metric first."""

    @abstractmethod
    def interval(self, drop: float, differ: float, count: int) -> tuple[float, float]:
        """95 % interval of a paired difference of mean worth.

        Args:
            drop: the difference.
            differ: mean square of the samples' differences.
            count: samples.
        """

    @abstractmethod
    def drops(self, full: float) -> tuple[float, float, float]:
        """Losses against a full model of this value that people ask about: small, middle, large."""

    @abstractmethod
    def show(self, value: float | None) -> str:
        """The metric's value as people read it."""

    @abstractmethod
    def show_loss(self, drop: float) -> str:
        """A loss against the full model, in the task's unit."""

    def show_change(self, drop: float) -> str:
        """What a loss against the full model does to the metric."""
        return f"{drop:+z.3f}" if self.fewer else f"{-drop:+.2f}"

    def show_goal(self, drop: float) -> str:
        """Where a loss that is asked for lies, seen from the full model."""
        return f"{'+' if self.fewer else '−'}{drop:g}"

    def told(self, value: float) -> str:
        """The metric's value in a sentence that has not said what it is."""
        return self.show(value)

    def merit(self, value: float) -> float:
        """The metric, turned where less of it is better, so that more is; its own inverse."""
        return -value if self.fewer else value

    def value(self, worth: float) -> float:
        """Mean worth → the metric."""
        return self.merit(self.scale * worth)


_NOT_FIGURES = ("name", "layers", "macs", "time")


def figure_keys(row: Mapping[str, Any]) -> list[str]:
    """The figures in a row of a table that names something and gives its speed-ups."""
    return [key for key in row if key not in _NOT_FIGURES]


def figure_name(key: str) -> str:
    """What people call a figure: ``mae`` is MAE, ``photo_mae`` is MAE per photo."""
    whole, _, name = key.rpartition("_")
    name = name.upper() if name in ("mae", "rmse") else name
    return f"{name} per {whole}" if whole else name


TASKS: Registry[type[Task]] = Registry("task")


def task_named(name: str, target: Target | None = None) -> Task:
    """The registered task ``name``."""
    return TASKS.get(name)(target)


@TASKS.register("classification")
class Classification(Task):
    """One of C classes; an answer is worth 1 when it is right."""

    name, targets = "classification", torch.int64
    metric, unit, scale, fewer, digits = "accuracy", "points", 100.0, False, 2

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def rightness(self, logits: Tensor, targets: Tensor) -> Tensor:
        labels = targets.argmax(dim=-1) if targets.ndim == 2 else targets
        return (logits.argmax(dim=-1) == labels).float()

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def worth(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return prediction == labels

    def figures(self, prediction: Tensor, labels: Tensor) -> dict[str, float]:
        return {"accuracy": 100 * (prediction == labels).double().mean().item()}

    def interval(self, drop: float, differ: float, count: int) -> tuple[float, float]:
        """Agresti and Min, "Simple improved confidence intervals for comparing matched
        proportions", Statistics in Medicine 2005: half a sample is added to each of the four
        cells, so that the interval has a width even when no answer differs."""
        lost, gained = count * (differ + drop) / 2 + 0.5, count * (differ - drop) / 2 + 0.5
        total = count + 2
        centre = (lost - gained) / total
        error = math.sqrt(max(lost + gained - (lost - gained) ** 2 / total, 0.0)) / total
        return centre - Z95 * error, centre + Z95 * error

    def drops(self, full: float) -> tuple[float, float, float]:
        return 0.5, 1.0, 2.0

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{value:.{self.digits}f} %"

    def show_loss(self, drop: float) -> str:
        return f"{drop:+.2f} points lost"


@TASKS.register("regression")
class Regression(Task):
    """One number; an answer is worth minus its absolute error."""

    name, targets = "regression", torch.float32
    metric, unit, scale, fewer, digits = "MAE", "MAE", 1.0, True, 3

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """L1, or smooth L1, of outputs (B, 1) against targets (B,) in units of their spread."""
        return F.smooth_l1_loss(
            logits.float()[:, 0], self._wanted(targets), beta=self.target.smooth, reduction="none"
        )

    def rightness(self, logits: Tensor, targets: Tensor) -> Tensor:
        """1 - |tanh(ŷ - y)| in units of the targets' spread (BERxiT)."""
        return 1 - (logits.float()[:, 0] - self._wanted(targets)).tanh().abs()

    def _wanted(self, targets: Tensor) -> Tensor:
        """Targets (B,) in units of their spread."""
        if targets.is_floating_point() and targets.ndim == 1:
            return (targets.float() - self.target.mean) / self.target.std
        raise OfframpError(
            "a regression model needs one number per sample as target, not "
            f"{targets.dtype} of shape {tuple(targets.shape)}"
        )

    def predict(self, logits: Tensor) -> Tensor:
        return logits[..., 0]

    def worth(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return -(prediction - labels).abs()

    def figures(self, prediction: Tensor, labels: Tensor) -> dict[str, float]:
        error = (prediction - labels).double()
        return {
            "mae": error.abs().mean().item(),
            "rmse": error.square().mean().sqrt().item(),
        }

    def interval(self, drop: float, differ: float, count: int) -> tuple[float, float]:
        """Normal interval of the mean of the samples' differences."""
        error = math.sqrt(max(differ - drop * drop, 0.0) / count)
        return drop - Z95 * error, drop + Z95 * error

    def drops(self, full: float) -> tuple[float, float, float]:
        """2, 5 and 10 % of the full model's MAE: no number fits every unit."""
        small, middle, large = (float(f"{share * full:.2g}") for share in (0.02, 0.05, 0.1))
        return small, middle, large

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{value:.{self.digits}f}"

    def told(self, value: float) -> str:
        return f"{self.metric} {self.show(value)}"

    def show_loss(self, drop: float) -> str:
        return f"{drop:+z.3f} of MAE"
