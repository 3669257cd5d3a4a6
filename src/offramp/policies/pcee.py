"""Patience over sure exits: stop when several exits in a row were sure, whatever they said.

PCEE-BERT, Zhang et al., Findings of NAACL 2022.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

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
from offramp.policies.threshold import negative_entropy

if TYPE_CHECKING:
    from offramp.calibration.records import Records
    from offramp.costs.table import CostTable

ENTROPIES = (10.0, 5.0, 2.0, 1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0001)
"""Nats; BranchyNet's released grid, which this rule with a patience of 1 is, and two more."""
_LONGEST = 4  # at greater patience hardly anybody leaves twelve exits early
_QUANTILES = 12


@register_policy("pcee")
class PCEE(ScalarPolicy):
    """Stop when the entropy was below a threshold at ``patience`` exits in a row (PCEE-BERT).

    The predictions need not agree. A patience of 1 is the entropy policy with one threshold.

    Args:
        patience: t, at least 1.
        entropy: τ in nats.
    """

    def __init__(self, patience: int = 2, entropy: float = 0.5) -> None:
        self.patience = whole(self.name, "patience", patience)
        self.entropy = number(self.name, "entropy", entropy, least=0)

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        return (torch.zeros(batch, dtype=torch.int64, device=device),)

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        return negative_entropy(torch.softmax(outputs.logits.float(), dim=-1))

    def decide(self, k: int, reading: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        sure = torch.where(reading > -self.entropy, memory[0] + 1, 0)
        return sure >= self.patience, (sure,)

    def column(self) -> str | None:
        return "entropy"

    def parameters(self) -> Parameters:
        return {"patience": self.patience, "entropy": self.entropy}

    @classmethod
    def candidates(cls, num_exits: int, **fitted: Any) -> list[Self]:
        spread = [cls(t, tau) for t in _patiences(num_exits - 1) for tau in ENTROPIES]
        return [*spread, cls(_LONGEST, 0.0)]

    @classmethod
    def propose(
        cls, records: "Records", costs: "CostTable", active: Sequence[int], **fitted: Any
    ) -> list[Self]:
        """Thresholds midway between entropies that the active exits gave, evenly by rank."""
        never = cls(_LONGEST, 0.0)
        if not active:
            return [never]
        seen = records.entropy[:, list(active)].flatten().sort().values.double()
        ranks = torch.linspace(0, len(seen) - 1, _QUANTILES + 2).long()[1:-1]
        middles = (seen[ranks] + seen[(ranks + 1).clamp(max=len(seen) - 1)]) / 2
        return [
            *(cls(t, tau) for t in _patiences(len(active)) for tau in middles.unique().tolist()),
            never,
        ]


def _patiences(early: int) -> range:
    return range(1, min(max(early, 1), _LONGEST) + 1)
