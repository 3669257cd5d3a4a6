"""What a loss is: a number per sample that leaving early costs, and how people read its mean."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.calibration.records import Records
from offramp.calibration.replay import Decisions
from offramp.calibration.risk.bounds import Floats
from offramp.errors import OfframpError
from offramp.policies.base import Policy
from offramp.registry import Registry


class Loss(ABC):
    """A number per sample, 0 for the full model's own answer; its mean is the risk.

    Args:
        given: the numbers that `options` names.

    Attributes:
        name: name in the registry.
        bound: largest value.
        binary: counting negative values as 0, only 0 and ``bound`` occur.
        tasks: kinds of answer it is defined for.
        options: numbers it needs, with what they mean.
    """

    name: ClassVar[str]
    bound: float = 1.0
    binary: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **given: float) -> None:
        for option, meaning in self.options.items():
            if not 0 < given.get(option, 0) < np.inf:
                raise OfframpError(f"risk {self.name!r} needs a {option} above 0: {meaning}")
        self.given = given

    @abstractmethod
    def at_exits(self, records: Records) -> Tensor:
        """Loss (N, K) of leaving at each exit with that exit's own answer."""

    def scaled(self, temperatures: Sequence[float] | None) -> Self:
        """The loss of answers whose softmax has these temperatures (K,); None: of plain ones."""
        return self

    @property
    def notes(self) -> list[str]:
        """What a reader of a proof about it should know."""
        return []

    def check(self, family: type[Policy], task: str) -> None:
        """Raise `OfframpError` where the loss is not defined for a family's answers."""
        if task not in self.tasks:
            fitting = [name for name in LOSSES.names() if task in LOSSES.get(name).tasks]
            raise OfframpError(
                f"risk {self.name!r} is for {' and '.join(self.tasks)}, but the model is for "
                f"{task} (use: {', '.join(fitting)})"
            )

    def worth(self, records: Records) -> NDArray[np.bool_] | Floats:
        """(N, K) what a search for the least loss goes by. Gains count as 0: where few samples
        change at all, more can be proved."""
        losses = numbers(self.at_exits(records))
        return losses <= 0 if self.binary else -np.maximum(losses, 0)

    def lost(self, worth: float) -> float:
        """Mean loss, without gains, of a mean `worth`."""
        return float(self.binary) - worth

    def along(self, path: Sequence[Decisions], records: Records) -> Floats:
        """Loss (N, m) of what m policies decided."""
        exits = torch.stack([decisions.exit for decisions in path], dim=1)
        return numbers(self.at_exits(records).gather(1, exits))

    @abstractmethod
    def says(self, value: float) -> str:
        """The statement that the risk is at most ``value``."""

    def show(self, value: float) -> str:
        """A measured risk as people read it."""
        return f"{value:.4f}"


class AnswerLoss(Loss):
    """A loss of what is predicted, whatever gave the prediction."""

    @abstractmethod
    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        """Loss of predictions (N, …) for the samples."""

    def at_exits(self, records: Records) -> Tensor:
        return self.compare(records.prediction, records)

    def along(self, path: Sequence[Decisions], records: Records) -> Floats:
        answers = torch.stack([decisions.prediction for decisions in path], dim=1)
        return numbers(self.compare(answers, records))


LOSSES: Registry[type[Loss]] = Registry("risk")


def loss_named(name: str, **given: float | None) -> Loss:
    """The registered loss ``name`` with the numbers it needs, or `OfframpError` where one is
    missing or is another loss's; None is not given."""
    kind, known = LOSSES.get(name), {key: n for key, n in given.items() if n is not None}
    for option in known:
        if option not in kind.options:
            takers = [other for other in LOSSES.names() if option in LOSSES.get(other).options]
            raise OfframpError(
                f"risk {name!r} takes no {option} (only {' and '.join(map(repr, takers))} does)"
            )
    return kind(**known)


def numbers(losses: Tensor) -> Floats:
    return np.asarray(losses.double().numpy())


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"
