"""What leaving early can cost a sample: losses of an answer against the label or the full model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from offramp.calibration.records import CHUNK, Records
from offramp.calibration.replay import Decisions
from offramp.calibration.risk.bounds import Floats
from offramp.errors import OfframpError
from offramp.policies.base import Policy, ScalarPolicy
from offramp.registry import Registry


class Loss(ABC):
    """A number per sample, 0 for the full model's own answer; its mean is the risk.

    Attributes:
        name: name in the registry.
        bound: largest value.
        binary: counting negative values as 0, only 0 and ``bound`` occur.
        tasks: kinds of answer it is defined for.
        tolerant: whether it takes a tolerance.
    """

    name: ClassVar[str]
    bound: ClassVar[float] = 1.0
    binary: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    tolerant: ClassVar[bool] = False

    def __init__(self, tolerance: float | None = None) -> None:
        if tolerance is not None and not self.tolerant:
            raise OfframpError(f"risk {self.name!r} takes no tolerance (only 'deviation' does)")
        self.tolerance = tolerance

    @abstractmethod
    def at_exits(self, records: Records) -> Tensor:
        """Loss (N, K) of leaving at each exit with that exit's own answer."""

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
        losses = _numbers(self.at_exits(records))
        return losses <= 0 if self.binary else 1 - np.maximum(losses, 0)

    def along(self, path: Sequence[Decisions], records: Records) -> Floats:
        """Loss (N, m) of what m policies decided."""
        exits = torch.stack([decisions.exit for decisions in path], dim=1)
        return _numbers(self.at_exits(records).gather(1, exits))

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
        return _numbers(self.compare(answers, records))


LOSSES: Registry[type[Loss]] = Registry("risk")


def loss_named(name: str, tolerance: float | None = None) -> Loss:
    """The registered loss ``name``, or `OfframpError` where it does not go with a tolerance."""
    return LOSSES.get(name)(tolerance)


@LOSSES.register("consistency")
class Consistency(AnswerLoss):
    """Another label than the full model's; needs no labels of the data."""

    name = "consistency"

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        return (prediction != records.prediction[:, -1:]).float()

    def says(self, value: float) -> str:
        return f"at most {_percent(value)} of samples get another label than the full model's"

    def show(self, value: float) -> str:
        return f"{_percent(value)} got another label"


@LOSSES.register("gap")
class Gap(AnswerLoss):
    """Extra 0/1 loss: 1 where only the full model is right, −1 where only the answer is."""

    name = "gap"

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        labels = records.labels[:, None]
        full = (records.prediction[:, -1:] == labels).float()
        return full - (prediction == labels).float()

    def says(self, value: float) -> str:
        return f"at most {_percent(value)} more of the samples are wrong than with the full model"

    def show(self, value: float) -> str:
        return f"{_percent(value)} more were wrong"


class ProbabilityLoss(Loss):
    """A loss of an exit's softmax."""

    binary = False

    def check(self, family: type[Policy], task: str) -> None:
        super().check(family, task)
        if not issubclass(family, ScalarPolicy):
            raise OfframpError(
                f"risk {self.name!r} is about the probabilities of single exits, but policy "
                f"{family.name!r} answers with something of its own (use: consistency, gap)"
            )

    @abstractmethod
    def judge(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (n, K, C) and labels (n,) to losses (n, K)."""

    def at_exits(self, records: Records) -> Tensor:
        rows = [slice(at, min(at + CHUNK, len(records))) for at in range(0, len(records), CHUNK)]
        return torch.cat([self._chunk(records, part) for part in rows])

    def _chunk(self, records: Records, rows: slice) -> Tensor:
        logits = [records.outputs(k, rows).logits for k in range(records.num_exits)]
        return self.judge(torch.stack(logits, dim=1).softmax(dim=-1), records.labels[rows])


@LOSSES.register("brier_gap")
class BrierGap(ProbabilityLoss):
    """Extra Brier score Σ_c (p_c − 1[c = y])², against the label y."""

    name, bound = "brier_gap", 2.0

    def judge(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        score = _brier(probabilities, labels)
        return score - score[:, -1:]

    def says(self, value: float) -> str:
        return f"the mean Brier score is at most {value:g} above the full model's"

    def show(self, value: float) -> str:
        return f"Brier score {value:+.4f}"


@LOSSES.register("brier_consistency")
class BrierConsistency(BrierGap):
    """Extra Brier score against the full model's label; needs no labels of the data."""

    name = "brier_consistency"

    def judge(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return super().judge(probabilities, probabilities[:, -1].argmax(dim=-1))

    def says(self, value: float) -> str:
        score = "the mean Brier score against the full model's labels"
        return f"{score} is at most {value:g} above the full model's own"


@LOSSES.register("hellinger")
class Hellinger(ProbabilityLoss):
    """Squared Hellinger distance 1 − Σ_c √(p_c q_c) to the full model's probabilities q."""

    name = "hellinger"

    def judge(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        overlap = (probabilities * probabilities[:, -1:]).sqrt().sum(dim=-1)
        distance = (1 - overlap).clamp(0, 1)
        distance[:, -1] = 0.0
        return distance

    def says(self, value: float) -> str:
        return f"the mean squared Hellinger distance to the full model is at most {value:g}"

    def show(self, value: float) -> str:
        return f"squared Hellinger distance {value:.4f}"


@LOSSES.register("deviation")
class Deviation(AnswerLoss):
    """A number further from the full model's than the tolerance; needs no labels of the data."""

    name, tasks, tolerant = "deviation", ("regression",), True

    def __init__(self, tolerance: float | None = None) -> None:
        super().__init__(tolerance)
        if tolerance is None or not tolerance > 0:
            raise OfframpError(
                "risk 'deviation' needs a tolerance above 0: how far from the full model's number "
                "an answer may be without counting"
            )
        self.allowed = tolerance

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        return ((prediction - records.prediction[:, -1:]).abs() > self.allowed).float()

    def says(self, value: float) -> str:
        return (
            f"at most {_percent(value)} of samples get a number more than {self.allowed:g} away "
            "from the full model's"
        )

    def show(self, value: float) -> str:
        return f"{_percent(value)} got a number further away"


def _brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Σ_c (p_c − 1[c = y])²: (n, K, C) and (n,) to (n, K)."""
    target = F.one_hot(labels, probabilities.shape[-1]).to(probabilities.dtype)
    return (probabilities - target[:, None]).square().sum(dim=-1)


def _numbers(losses: Tensor) -> Floats:
    return np.asarray(losses.double().numpy())


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"
