"""Patience for numbers: stop when several exits in a row answer nearly the same.

PABEE's rule for regression, Zhou et al., NeurIPS 2020, arXiv 2006.04152.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from offramp.policies.arguments import number, whole
from offramp.policies.base import (
    ExitOutputs,
    Memory,
    Parameters,
    ScalarPolicy,
    register_policy,
)

if TYPE_CHECKING:
    from offramp.calibration.records import Records
    from offramp.costs.table import CostTable

TOLERANCES = (1e6, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""In the unit of the targets, for who has no records to take them from."""
_LONGEST = 4
_QUANTILES = 16


@register_policy("settled")
class Settled(ScalarPolicy):
    """Stop when the value moved by less than a tolerance ``patience`` times in a row (PABEE).

    |y_k − y_{k−1}| < τ counts one up, anything else back to 0. The first active exit has nothing to
    be compared with, so at least ``patience + 1`` of them run.

    Args:
        patience: t, at least 1.
        tolerance: τ in the unit of the targets; at 0 nobody leaves early.
    """

    tasks: ClassVar[tuple[str, ...]] = ("regression",)

    def __init__(self, patience: int = 1, tolerance: float = 1.0) -> None:
        self.patience = whole(self.name, "patience", patience)
        self.tolerance = number(self.name, "tolerance", tolerance, least=0)

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        last = torch.full((batch,), torch.inf, device=device)  # no value is near infinity
        return last, torch.zeros(batch, dtype=torch.int64, device=device)

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        return outputs.logits[:, 0].float()

    def decide(self, k: int, reading: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        last, agreements = memory
        near = (reading - last).abs() < self.tolerance
        agreements = torch.where(near, agreements + 1, 0)
        return agreements >= self.patience, (reading, agreements)

    def column(self) -> str | None:
        return "prediction"

    def parameters(self) -> Parameters:
        return {"patience": self.patience, "tolerance": self.tolerance}

    @classmethod
    def candidates(cls, num_exits: int, **fitted: Any) -> list[Self]:
        patiences = range(1, max(2, min(num_exits, _LONGEST)))
        spread = [cls(t, tolerance) for t in patiences for tolerance in TOLERANCES]
        return [*spread, cls(1, 0.0)]

    @classmethod
    def propose(
        cls, records: "Records", costs: "CostTable", active: Sequence[int], **fitted: Any
    ) -> list[Self]:
        """Tolerances midway between changes seen from one active exit to the next, by rank."""
        never = cls(1, 0.0)
        if len(active) < 2:
            return [never]
        values = records.prediction[:, sorted(active)].double()
        seen = values.diff(dim=1).abs().flatten().sort().values
        ranks = torch.linspace(0, len(seen) - 1, _QUANTILES + 1).long()
        above = torch.cat([seen, 2 * seen[-1:] + 1])  # the last one lets everybody go
        middles = ((seen[ranks] + above[ranks + 1]) / 2).unique().tolist()
        patiences = range(1, min(len(active) - 1, _LONGEST) + 1)
        return [*(cls(t, tolerance) for t in patiences for tolerance in middles), never]
