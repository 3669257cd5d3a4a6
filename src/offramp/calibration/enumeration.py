"""Enumeration: policies with few settings are simply all tried.

For path-dependent policies (patience, …) no threshold can be improved alone; their families are
small, and replay on stored scalars takes milliseconds.
"""

from collections.abc import Sequence

from offramp.calibration.front import Setting, locked_exits, measure
from offramp.calibration.records import Records
from offramp.calibration.replay import replay
from offramp.costs.table import CostTable
from offramp.policies.base import Policy, ScalarPolicy

_STRIDES = (1, 2, 3)


def enumerate_settings(family: type[Policy], records: Records, costs: CostTable) -> list[Setting]:
    """Every candidate of a family with every regular choice of active exits."""
    early = records.num_exits - 1
    cheap = issubclass(family, ScalarPolicy)
    choices = active_choices(early, locked_exits(records.meta.standalone), strided=cheap)
    settings = []
    for policy in family.candidates(records.num_exits):
        for active in choices:
            decisions = replay(policy, records, active)
            settings.append(Setting(policy, active, measure(decisions, records, costs, active)))
    return settings


def active_choices(early: int, locked: Sequence[int], *, strided: bool) -> list[tuple[int, ...]]:
    """No exit, all exits, and if ``strided`` every s-th from each start; locked ones always on."""
    choices = [range(0), range(early)]
    if strided:
        choices += [range(start, early, stride) for stride in _STRIDES for start in range(early)]
    return list(dict.fromkeys(tuple(sorted({*choice, *locked})) for choice in choices))
