"""Settings of families with one threshold per exit, found by searching the scores of records."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.front import Setting, locked_exits
from offramp.calibration.records import Records
from offramp.calibration.search import OFF, SEARCHES, Leavers, ThresholdSearch
from offramp.calibration.smoothing import expected_worth
from offramp.calibration.sweep import Sweep
from offramp.costs.table import CostTable
from offramp.policies.base import Parameters
from offramp.policies.threshold import ThresholdPolicy


class ThresholdSettings:
    """A search ready to run, and its findings as settings.

    Args:
        family: its members differ in thresholds alone, given what is fitted.
        fitted: arguments of every member.
        worth: (N, K) what an answer of each exit is worth; being right, or minus the error, when
            omitted.
        smooth: search on smooth curves of expected worth.
        search: registered search.
    """

    def __init__(
        self,
        family: type[ThresholdPolicy],
        records: Records,
        costs: CostTable,
        *,
        fitted: Parameters,
        worth: NDArray[np.bool_] | NDArray[np.float64] | None = None,
        smooth: bool = True,
        search: str = "coordinate",
    ) -> None:
        self.family, self.fitted = family, fitted
        reader = family.shared(family.never, records.num_exits, **fitted)
        scores = records.readings(reader).float().numpy()
        values = records.worth.numpy() if worth is None else worth
        self.search: ThresholdSearch = SEARCHES.get(search)(
            scores,
            values,
            np.asarray(costs.body) / costs.full,
            np.asarray(costs.head) / costs.full,
            expected=expected_worth(scores, values) if smooth else None,
            full=records.full_worth.numpy() if worth is None else None,
            locked=locked_exits(records.meta.standalone),
            always=family.always,
            never=family.never,
        )
        self.sweep = Sweep(self.search)

    def setting(self, leavers: Leavers) -> Setting:
        """A setting of the search as policy and active exits; ``accuracy`` is mean worth."""
        active = tuple(k for k, m in enumerate(leavers) if m != OFF)
        policy = self.family(self.search.thresholds(leavers), **self.fitted)
        return Setting(policy, active, self.sweep.measure(leavers))

    def all(self, around: Callable[[Sweep], list[Leavers]]) -> list[Setting]:
        """The front and every static exit, and what a target wants to know besides."""
        found = [*self.sweep.settings(), *around(self.sweep)]
        return [self.setting(leavers) for leavers in dict.fromkeys(found)]
