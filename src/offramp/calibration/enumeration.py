"""Enumeration: families with few settings are simply all tried.

Where no threshold can be improved alone (patience, …), or the family itself says which settings
suit records and costs (budgeted, …). Replay on stored scalars takes milliseconds.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from offramp.calibration.front import Measure, Setting, locked_exits, measure
from offramp.calibration.path_search import path_settings
from offramp.calibration.records import Records
from offramp.calibration.replay import replay
from offramp.costs.table import CostTable
from offramp.policies.base import Parameters, Policy, ScalarPolicy
from offramp.policies.path import PathPolicy

_STRIDES = (1, 2, 3)


def enumerate_settings(
    family: type[Policy],
    records: Records,
    costs: CostTable,
    *,
    fitted: Parameters | None = None,
    holds: Callable[[Measure], bool] | None = None,
    smooth: bool = True,
) -> list[Setting]:
    """Every setting worth trying of a family, with every regular choice of active exits.

    Args:
        fitted: what `Policy.fit` gave on other records; fitted here when omitted.
        holds: where a promise begins to hold a path search looks closer.
        smooth: search paths on smooth curves (see `offramp.calibration.smoothing`).
    """
    fitted = family.fit(records) if fitted is None else fitted
    if issubclass(family, PathPolicy):
        return path_settings(family, records, costs, fitted=fitted, holds=holds, smooth=smooth)
    early = records.num_exits - 1
    cheap = issubclass(family, ScalarPolicy)
    choices = active_choices(early, locked_exits(records.meta.standalone), strided=cheap)
    columns = Columns(records)
    settings = []
    for active in choices:
        for policy in family.propose(records, costs, active, **fitted):
            decisions = replay(policy, records, active, columns=columns.of(policy))
            settings.append(Setting(policy, active, measure(decisions, records, costs, active)))
    return settings


class Columns:
    """What scalar policies read, turned once so that replaying many of them reads along memory."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._stored: dict[str, Tensor] = {}

    def of(self, policy: Policy) -> Tensor | None:
        """(K, N) that the policy reads; None where it reads no scalar, or one that is not stored.

        Policies that name the same column read the same.
        """
        if not isinstance(policy, ScalarPolicy) or (name := policy.column()) is None:
            return None
        if name not in self._stored:
            self._stored[name] = self.records.readings(policy).T.contiguous()
        return self._stored[name]


def active_choices(early: int, locked: Sequence[int], *, strided: bool) -> list[tuple[int, ...]]:
    """No exit, all exits, and if ``strided`` every s-th from each start; locked ones always on."""
    choices = [range(0), range(early)]
    if strided:
        choices += [range(start, early, stride) for stride in _STRIDES for start in range(early)]
    return list(dict.fromkeys(tuple(sorted({*choice, *locked})) for choice in choices))
