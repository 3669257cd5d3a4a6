"""Ensembles: every exit answers with a weighted mean of all that was said so far.

Zero Time Waste, Wołczyk et al., NeurIPS 2021.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from offramp.errors import OfframpError
from offramp.policies.base import ExitOutputs, Memory, Parameters, register_policy
from offramp.policies.path import PathPolicy, checked_logits

if TYPE_CHECKING:
    from offramp.calibration.records import Records

_TINY = torch.finfo(torch.float32).tiny


class Ensemble(PathPolicy):
    """Stop when the ensemble's largest probability exceeds the threshold, and answer with it.

    Ensemble m reads exits j ≤ m. Memory holds all ensembles as far as they have got, so that an
    exit hands on its weighted share and is forgotten; an exit that is off adds nothing. The last
    exit answers alone unless it has a row of weights too. The ensembles' answers are
    log-probabilities.

    Args:
        thresholds: (K,) in units of probability; the last is ignored.
        weights: row m holds the m + 1 weights e^{w_mj} > 0 of ensemble m; K - 1 or K rows.
        offsets: row m holds what ensemble m begins with for each class (see the subclass).
    """

    always = 0.0
    never = 1.0
    learns = True
    options = MappingProxyType({"include_last": False, "offsets": True})

    def __init__(
        self,
        thresholds: Sequence[float],
        weights: Sequence[Sequence[float]],
        offsets: Sequence[Sequence[float]],
    ) -> None:
        super().__init__(thresholds)
        self.weights = _table(self.name, "weights", weights)
        self.offsets = _table(self.name, "offsets", offsets)
        exits, rows = len(self.thresholds), len(self.weights)
        if rows not in (exits - 1, exits):
            raise OfframpError(
                f"policy {self.name!r}: {rows} rows of weights for {exits} exits "
                f"(use {exits - 1}, or {exits} when the last exit answers with an ensemble too)"
            )
        for m, row in enumerate(self.weights):
            if len(row) != m + 1 or min(row) <= 0:
                raise OfframpError(
                    f"policy {self.name!r}: weights[{m}] must be {m + 1} numbers above 0, one per "
                    "exit up to its own"
                )
        if len(self.offsets) != rows or len({len(row) for row in self.offsets}) > 1:
            raise OfframpError(
                f"policy {self.name!r}: offsets must be {rows} rows of one number per class, as "
                "many as there are rows of weights"
            )
        self.num_classes = len(self.offsets[0]) if rows else 0
        self._start = torch.tensor(self.offsets).reshape(rows, self.num_classes)

    @staticmethod
    @abstractmethod
    def voice(logits: Tensor) -> Tensor:
        """What an exit brings in: (…, C) to (…, C)."""

    @staticmethod
    @abstractmethod
    def share(weight: float, members: int) -> float:
        """Factor of one exit's voice in an ensemble of so many."""

    @staticmethod
    @abstractmethod
    def offset(bias: Tensor) -> Tensor:
        """Fitted b_m (C,) as the numbers the ensemble begins with."""

    @staticmethod
    @abstractmethod
    def readout(running: Tensor) -> Tensor:
        """A finished sum (…, C) as log-probabilities (…, C)."""

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        """All ensembles (B, rows, C) before any exit has spoken."""
        return (self._start.to(device).repeat(batch, 1, 1),)

    def follow(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        if k >= len(self.weights):
            alone = outputs.logits.float()
            return torch.softmax(alone, dim=-1).amax(dim=-1), alone, memory
        voice = self.voice(checked_logits(self.name, outputs, self.num_classes))  # (B, C)
        column = [self.share(row[k], len(row)) for row in self.weights[k:]]
        shares = torch.stack([share * voice for share in column], dim=1)  # (B, rows - k, C)
        running = torch.cat([memory[0][:, :k], memory[0][:, k:] + shares], dim=1)
        answer = self.readout(running[:, k])
        return answer.amax(dim=-1).exp(), answer, (running,)

    def parameters(self) -> Parameters:
        return {
            **super().parameters(),
            "weights": [list(row) for row in self.weights],
            "offsets": [list(row) for row in self.offsets],
        }

    @classmethod
    def fit(cls, records: "Records", **options: Any) -> Parameters:
        """Weights and offsets with the least negative log-likelihood on these records."""
        from offramp.policies.ensemble_fit import fit_ensembles

        return fit_ensembles(cls, records, **{**cls.options, **options})


@register_policy("ztw_geometric")
class Geometric(Ensemble):
    """Stop when a geometric ensemble of the exits so far is sure (ZTW).

    log q_m = mean_{j ≤ m} e^{w_mj} log p_j + b_m, normalised. The mean is over all m + 1 exits:
    one that is off counts as if it found all classes equally likely. ``offsets`` are b_m.
    """

    @staticmethod
    def voice(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=-1)

    @staticmethod
    def share(weight: float, members: int) -> float:
        return weight / members

    @staticmethod
    def offset(bias: Tensor) -> Tensor:
        return bias

    @staticmethod
    def readout(running: Tensor) -> Tensor:
        return F.log_softmax(running, dim=-1)


@register_policy("ztw_arithmetic")
class Arithmetic(Ensemble):
    """Stop when an arithmetic ensemble of the exits so far is sure (ZTW).

    q_m = (Σ_{j ≤ m} e^{w_mj} p_j + e^{b_m}), normalised. ``offsets`` are e^{b_m} ≥ 0; all 0 is the
    other reading, a plain weighted mean of probabilities.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        weights: Sequence[Sequence[float]],
        offsets: Sequence[Sequence[float]],
    ) -> None:
        super().__init__(thresholds, weights, offsets)
        if any(value < 0 for row in self.offsets for value in row):
            raise OfframpError(f"policy {self.name!r}: offsets must be 0 or more")

    @staticmethod
    def voice(logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)

    @staticmethod
    def share(weight: float, members: int) -> float:
        return weight

    @staticmethod
    def offset(bias: Tensor) -> Tensor:
        return bias.exp()

    @staticmethod
    def readout(running: Tensor) -> Tensor:
        logs = running.clamp_min(_TINY).log()
        return logs - running.sum(dim=-1, keepdim=True).log()


def _table(name: str, key: str, rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    try:
        found = tuple(tuple(float(value) for value in row) for row in rows)
    except (TypeError, ValueError):
        raise OfframpError(f"policy {name!r}: {key} must be rows of numbers") from None
    if any(not row or not all(map(math.isfinite, row)) for row in found):
        raise OfframpError(f"policy {name!r}: {key} must be rows of finite numbers")
    return found
