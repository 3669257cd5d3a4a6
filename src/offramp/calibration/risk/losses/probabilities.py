"""Losses of probabilities: the Brier score, and how far they are from the full model's."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from offramp.calibration.records import CHUNK, Records
from offramp.calibration.risk.losses.loss import LOSSES, Loss
from offramp.errors import OfframpError
from offramp.policies.base import Policy, ScalarPolicy


class ProbabilityLoss(Loss):
    """A loss of the probabilities an exit delivers: its softmax at its temperature.

    The full model's are taken at the temperature of the last exit, as everybody gets them.

    Attributes:
        temperatures: (K,) of the softmax; None: 1 at every exit.
    """

    binary = False
    temperatures: tuple[float, ...] | None = None

    def scaled(self, temperatures: Sequence[float] | None) -> Self:
        found = copy.copy(self)
        found.temperatures = None if temperatures is None else tuple(temperatures)
        return found

    @property
    def notes(self) -> list[str]:
        if self.temperatures is None:
            return []
        return ["what is proved is about probabilities at the fitted temperatures, as delivered"]

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
        logits = torch.stack([said.logits for said in records.said(rows)], dim=1)
        scale = torch.tensor(self.temperatures or (1.0,) * records.num_exits)
        return self.judge((logits / scale[:, None]).softmax(dim=-1), records.labels[rows])


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


def _brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Σ_c (p_c − 1[c = y])²: (n, K, C) and (n,) to (n, K)."""
    target = F.one_hot(labels, probabilities.shape[-1]).to(probabilities.dtype)
    return (probabilities - target[:, None]).square().sum(dim=-1)
