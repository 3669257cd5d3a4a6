"""Calibrate: choose the operating point that keeps a promise."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from offramp.calibration.enumeration import enumerate_settings
from offramp.calibration.front import Measure, Setting, locked_exits, pareto, speedup_layers
from offramp.calibration.point import FrontPoint, OperatingPoint, Probes, Promise
from offramp.calibration.records import Records
from offramp.calibration.search import OFF, Leavers, ThresholdSearch
from offramp.calibration.smoothing import expected_correct
from offramp.calibration.sweep import Sweep
from offramp.calibration.temperature import fit_temperatures
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies.base import POLICIES, Policy, ScalarPolicy
from offramp.policies.threshold import ThresholdPolicy

_PROBES = 256
_SLACK = 1e-9  # a drop of exactly 0.5 points keeps a promise of 0.5


def calibrate(
    records: Records,
    *,
    policy: str = "confidence",
    max_drop: float | None = None,
    max_cost: float | None = None,
    costs: CostTable | None = None,
    macs: CostTable | None = None,
    time: CostTable | None = None,
    temperatures: bool = False,
    certainty: float | None = None,
    smooth: bool = True,
) -> OperatingPoint:
    """Choose thresholds and active exits that keep a promise; the whole front comes along.

    Args:
        records: what every exit said about the calibration split.
        policy: a registered policy.
        max_drop: percentage points of accuracy it may lose against the full model.
        max_cost: share of the unmodified model's cost it may take.
        costs: table to search on, in MACs or ms; by default the MACs stored in the records, or
            blocks where there are none.
        macs: MAC table to report when ``costs`` is another.
        time: latency table to report when ``costs`` is another.
        temperatures: fit a softmax temperature per exit first, on the same samples.
        certainty: for ``max_drop``: demand that the loss, judged by its standard error on these
            samples, is within the promise with this probability (0.5 … 1); no guarantee.
        smooth: search on smooth curves of being right instead of plain outcomes (see
            `offramp.calibration.smoothing`).

    Raises:
        OfframpError: for records of the test split, two targets or none, a target that no point
            reaches (with the closest), or tables that do not fit.
    """
    if records.meta.split == "test":
        raise OfframpError(
            "calibration on the test split would make every reported number worthless: collect "
            "split='calibration'"
        )
    family = POLICIES.get(policy)
    costs = costs or records.meta.costs or block_costs(records)
    for table in (costs, macs, time):
        if table is not None and table.num_exits != records.num_exits:
            raise OfframpError(
                f"the cost table has {table.num_exits} exits, the records {records.num_exits}"
            )
    promise = _promise(max_drop, max_cost, costs.unit)
    holds = _holds(promise, records, certainty)
    if issubclass(family, ThresholdPolicy):
        fitted = fit_temperatures(records) if temperatures else None
        settings = _search(family, records, costs, fitted, holds, smooth=smooth)
    elif temperatures:
        raise OfframpError(f"policy {policy!r} has no temperatures")
    else:
        settings = enumerate_settings(family, records, costs)
    chosen = _choose(settings, promise, holds, records)
    tables = Tables(records, costs, macs, time)
    return _point(chosen, settings, promise, records, tables, temperatures=temperatures)


def block_costs(records: Records) -> CostTable:
    """A table that counts blocks, with free heads: the layer speed-up."""
    run = records.meta.blocks_run
    body = tuple(float(b - a) for a, b in zip([0, *run[:-1]], run, strict=True))
    return CostTable(
        unit="blocks", body=body, head=(0.0,) * len(run), full=float(records.meta.blocks)
    )


class Tables:
    """The searched cost table and those that are reported beside it."""

    def __init__(
        self, records: Records, costs: CostTable, macs: CostTable | None, time: CostTable | None
    ) -> None:
        self.records, self.costs = records, costs
        self.macs = macs or (costs if costs.unit == "MACs" else records.meta.costs)
        self.time = time or (costs if costs.unit.startswith("ms") else None)

    def describe(self, setting: Setting) -> FrontPoint:
        """A setting in the numbers people read."""
        found = setting.measure
        drop = self.records.accuracy[-1] - found.accuracy
        share, active = found.exit_share, setting.active
        return FrontPoint(
            policy=setting.policy.to_config(),
            active=active,
            accuracy=100 * found.accuracy,
            drop=100 * drop,
            drop_error=100 * drop_error(drop, found.differ, len(self.records)),
            cost=found.cost * self.costs.full,
            cost_share=found.cost,
            speedup_layers=speedup_layers(self.records, share),
            speedup_macs=self.macs.speedup(share, active) if self.macs else None,
            speedup_time=self.time.speedup(share, active) if self.time else None,
            exit_share=share,
        )


def drop_error(drop: float, differ: float, count: int) -> float:
    """Standard error of a paired difference of accuracies (share of discordant pairs known)."""
    return math.sqrt(max(differ - drop * drop, 0.0) / count)


def _promise(max_drop: float | None, max_cost: float | None, unit: str) -> Promise:
    if (max_drop is None) == (max_cost is None):
        raise OfframpError("calibrate needs exactly one target: max_drop or max_cost")
    if max_drop is not None:
        if not math.isfinite(max_drop):
            raise OfframpError(f"max_drop = {max_drop}, but it must be a number of points")
        return Promise(kind="max_drop", value=max_drop, unit="points")
    if max_cost is None or not (math.isfinite(max_cost) and max_cost > 0):
        raise OfframpError(f"max_cost = {max_cost}, but it must be a share above 0, such as 0.5")
    return Promise(kind="max_cost", value=max_cost, unit=unit)


def _holds(
    promise: Promise, records: Records, certainty: float | None
) -> Callable[[Measure], bool]:
    if promise.kind == "max_cost":
        return lambda found: found.cost <= promise.value + _SLACK
    if certainty is not None and not 0.5 <= certainty < 1:
        raise OfframpError(f"certainty = {certainty:g}, but it must be between 0.5 and 1")
    quantile = 0.0 if certainty is None else torch.special.ndtri(torch.tensor(certainty)).item()
    full, count = records.accuracy[-1], len(records)

    def within(found: Measure) -> bool:
        drop = full - found.accuracy
        margin = quantile * drop_error(drop, found.differ, count)
        return 100 * (drop + margin) <= promise.value + _SLACK

    return within


def _search(
    family: type[ThresholdPolicy],
    records: Records,
    costs: CostTable,
    temperatures: Sequence[float] | None,
    holds: Callable[[Measure], bool],
    *,
    smooth: bool,
) -> list[Setting]:
    reader = family([family.never] * records.num_exits, temperatures)
    scores = records.readings(reader).float().numpy()
    correct = records.correct.numpy()
    search = ThresholdSearch(
        scores,
        correct,
        np.asarray(costs.body) / costs.full,
        np.asarray(costs.head) / costs.full,
        expected=expected_correct(scores, correct) if smooth else None,
        locked=locked_exits(records.meta.standalone),
        always=family.always,
        never=family.never,
    )
    sweep = Sweep(search)

    def setting(leavers: Leavers) -> Setting:
        active = tuple(k for k, m in enumerate(leavers) if m != OFF)
        made = family(search.thresholds(leavers), temperatures)
        return Setting(made, active, sweep.measure(leavers))

    refined = sweep.refine(holds)
    return [setting(leavers) for leavers in dict.fromkeys([*sweep.settings(), *refined])]


def _choose(
    settings: Sequence[Setting],
    promise: Promise,
    holds: Callable[[Measure], bool],
    records: Records,
) -> Setting:
    kept = [setting for setting in settings if holds(setting.measure)]
    if promise.kind == "max_drop":
        if kept:
            return min(kept, key=lambda s: (s.measure.cost, -s.measure.accuracy))
        best = max(settings, key=lambda s: s.measure.accuracy).measure
        drop = 100 * (records.accuracy[-1] - best.accuracy)
        raise OfframpError(
            f"no point loses at most {promise.value:g} points: the closest loses {drop:.2f} at "
            f"{best.cost:.2f} of the full model's cost"
        )
    if kept:
        return max(kept, key=lambda s: (s.measure.accuracy, -s.measure.cost))
    best = min(settings, key=lambda s: s.measure.cost).measure
    raise OfframpError(
        f"no point takes at most {promise.value:g} of the full model's {promise.unit}: the closest "
        f"takes {best.cost:.3f}"
    )


def _point(
    chosen: Setting,
    settings: Sequence[Setting],
    promise: Promise,
    records: Records,
    tables: Tables,
    *,
    temperatures: bool,
) -> OperatingPoint:
    meta = records.meta
    notes = []
    if temperatures:
        notes.append("temperatures and thresholds were fit on the same split")
    return OperatingPoint(
        **dict(tables.describe(chosen)),
        promise=promise,
        full_accuracy=100 * records.accuracy[-1],
        n=len(records),
        dataset=meta.dataset,
        split=meta.split,
        exit_names=meta.exit_names,
        positions=meta.positions,
        blocks=meta.blocks,
        fingerprint=meta.fingerprint,
        records=records.digest,
        engine=meta.engine,
        precision=meta.precision,
        versions=meta.versions,
        num_threads=meta.num_threads,
        costs=tables.costs,
        macs=tables.macs,
        time=tables.time,
        probes=_probes(records, chosen.policy),
        notes=notes,
        front=[tables.describe(setting) for setting in pareto(settings)],
    )


def _probes(records: Records, policy: Policy) -> Probes:
    """Readings of samples spread evenly over the records."""
    if not isinstance(policy, ScalarPolicy):
        return Probes()
    rows = torch.linspace(0, len(records) - 1, min(_PROBES, len(records))).long()
    scores = records.readings(policy)[rows].double()
    return Probes(
        ids=records.ids[rows].tolist(),
        scores=[[round(value, 7) for value in row] for row in scores.tolist()],
    )
