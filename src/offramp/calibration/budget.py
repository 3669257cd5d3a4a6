"""Thresholds for a mean cost, MSDNet's way."""

from collections.abc import Sequence

from offramp.calibration.records import Records
from offramp.calibration.replay import active_exits
from offramp.costs.table import CostTable
from offramp.policies.budgeted import Quotas, exit_shares, ratio_for
from offramp.policies.threshold import Confidence


def budgeted_thresholds(
    records: Records, costs: CostTable, target: float, active: Sequence[int] | None = None
) -> Confidence:
    """The confidence policy whose leavers follow q_k ∝ r^k, with r solved for a mean cost.

    Huang et al., ICLR 2018. On ``records`` the mean cost is the target but for rounding; on other
    samples it will differ.

    Args:
        records: of the calibration split.
        costs: what leaving at each exit costs.
        target: mean cost as a share of the unmodified model's.
        active: early exits that are on; all of them when omitted.

    Raises:
        OfframpError: for a target that no exit distribution reaches.
    """
    walked = (*active_exits(active, records.num_exits), records.num_exits - 1)
    paid = costs.leave_cost(walked[:-1])
    ratio = ratio_for([paid[k] / costs.full for k in walked], target)
    chosen = Quotas(records.confidence[:, walked]).above(exit_shares(ratio, len(walked)))
    by_exit = dict(zip(walked, chosen, strict=True))
    return Confidence([by_exit.get(k, Confidence.never) for k in range(records.num_exits)])
