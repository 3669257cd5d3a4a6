"""Budgeted batches: how many samples leave at each exit is decided first, thresholds follow.

MSDNet, Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification",
ICLR 2018.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.base import ExitOutputs, Memory, ScalarPolicy, register_policy
from offramp.policies.thresholded import Thresholded

if TYPE_CHECKING:
    from offramp.calibration.records import Records
    from offramp.costs.table import CostTable

_TARGETS = 32
_FAR = 60.0  # |log r| beyond which all samples leave at the first or the last exit
_HALVINGS = 100


@register_policy("budgeted")
class Budgeted(Thresholded, ScalarPolicy):
    """Stop when the largest softmax probability exceeds a threshold that fills a quota (MSDNet).

    Exit k is given the share q_k ∝ r^k of the samples, with r solved for a mean cost; its
    threshold is the confidence that so many of those still there exceed on the calibration split.
    Live it is the confidence policy; what differs is where the thresholds come from.

    Args:
        thresholds: (K,) in units of probability; the last is ignored.
    """

    always = 0.0
    never = 1.0

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        return ()

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        return torch.softmax(outputs.logits.float(), dim=-1).amax(dim=-1)

    def decide(self, k: int, reading: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return reading > self.thresholds[k], memory

    def column(self) -> str | None:
        return "confidence"

    @classmethod
    def propose(
        cls, records: "Records", costs: "CostTable", active: Sequence[int], **fitted: Any
    ) -> list[Self]:
        """One member for each of many mean costs between the first active exit's and the last."""
        if not active:
            return [cls.shared(cls.never, records.num_exits)]
        walked = [*sorted(active), records.num_exits - 1]
        paid = costs.leave_cost(active)
        low, high = paid[walked[0]], paid[walked[-1]]
        if not low < high:
            return [cls.shared(cls.always, records.num_exits)]
        targets = torch.linspace(low, high, _TARGETS + 2, dtype=torch.float64)[1:-1].tolist()
        quotas = Quotas(records.confidence[:, walked])
        members = []
        for target in targets:
            shares = exit_shares(ratio_for([paid[k] for k in walked], target), len(walked))
            chosen = dict(zip(walked, quotas.above(shares), strict=True))
            members.append(cls([chosen.get(k, cls.never) for k in range(records.num_exits)]))
        return members


def exit_shares(ratio: float, exits: int) -> tuple[float, ...]:
    """q_k ∝ r^k, summing to 1: (K,). Below 1 most leave early, above 1 late."""
    powers = torch.arange(exits, dtype=torch.float64) * math.log(ratio)
    return tuple(torch.softmax(powers, dim=0).tolist())


def ratio_for(costs: Sequence[float], target: float) -> float:
    """r for which Σ q_k c_k is ``target``, by bisection on log r.

    Args:
        costs: (K,) of leaving at each exit, ascending.
        target: mean cost, between the first and the last.

    Raises:
        OfframpError: for a target outside.
    """
    if not costs[0] < target < costs[-1]:
        raise OfframpError(
            f"a mean cost of {target:g} is out of reach: it must be between {costs[0]:g}, leaving "
            f"at the first exit, and {costs[-1]:g}, at the last"
        )
    low, high = -_FAR, _FAR
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shares = exit_shares(math.exp(middle), len(costs))
        mean = sum(share * cost for share, cost in zip(shares, costs, strict=True))
        low, high = (middle, high) if mean < target else (low, middle)
    return math.exp((low + high) / 2)


class Quotas:
    """Thresholds that let given shares of samples leave, exit by exit.

    Args:
        scores: (N, K) of the exits that are on, the last exit included; higher is surer.
    """

    def __init__(self, scores: Tensor) -> None:
        self.columns = scores.T.contiguous()  # (K, N)
        self.ascending, order = self.columns.sort(dim=1, stable=True)
        self.order = order.flip(1)  # surest first

    def thresholds(self, shares: Sequence[float]) -> tuple[float, ...]:
        """T_k, with conf ≥ T_k leaving: the score of the ⌊N q_k⌋-th surest who is still there.

        +∞ where the quota is empty or more than who is there, −∞ at the last exit: (K,).
        """
        count = self.columns.shape[1]
        waiting = torch.ones(count, dtype=torch.bool)
        found = []
        for scores, order, share in zip(self.columns[:-1], self.order[:-1], shares, strict=False):
            quota = math.floor(count * share + 1e-9)
            there = order[waiting[order]]
            if quota == 0 or len(there) < quota:
                found.append(math.inf)
                continue
            threshold = scores[there[quota - 1]]
            waiting &= scores < threshold
            found.append(threshold.item())
        return (*found, -math.inf)

    def above(self, shares: Sequence[float]) -> tuple[float, ...]:
        """The same decisions by ``conf > t``, t midway to the next lower score observed: (K,)."""
        found = []
        for column, threshold in zip(self.ascending, self.thresholds(shares)[:-1], strict=False):
            lower = int(torch.searchsorted(column, threshold))  # so many scores are below
            if math.isinf(threshold):
                found.append(Budgeted.never)
            elif not lower:
                found.append(Budgeted.always)
            else:
                below, above = column[lower - 1], column[lower]
                middle = (below + above) / 2  # float32, as policies compare
                found.append((middle if middle < above else below).item())
        return (*found, Budgeted.never)
