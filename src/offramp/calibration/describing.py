"""From a chosen setting to an operating point that says everything about itself."""

from collections.abc import Mapping, Sequence

import torch

from offramp.calibration.front import FrontPoint, Setting, pareto, speedup_layers
from offramp.calibration.point import OperatingPoint, Probes
from offramp.calibration.promise import Promise
from offramp.calibration.records import Records
from offramp.calibration.targets import drop_error
from offramp.calibration.wish import Wish
from offramp.costs.table import CostTable
from offramp.policies.base import Policy, ScalarPolicy

_PROBES = 256


class Tables:
    """The searched cost table and those that are reported beside it."""

    def __init__(
        self, records: Records, costs: CostTable, macs: CostTable | None, time: CostTable | None
    ) -> None:
        self.costs = costs
        self.macs = macs or (costs if costs.unit == "MACs" else records.meta.costs)
        self.time = time or (costs if costs.unit.startswith("ms") else None)

    def describe(self, setting: Setting, records: Records) -> FrontPoint:
        """A setting that was measured on ``records``, in the numbers people read."""
        found, task = setting.measure, records.task
        drop = records.full_accuracy - found.accuracy
        share, active = found.exit_share, setting.active
        return FrontPoint(
            policy=setting.policy.to_config(),
            active=active,
            accuracy=task.value(found.accuracy),
            drop=task.scale * drop,
            drop_error=task.scale * drop_error(drop, found.differ, len(records)),
            cost=found.cost * self.costs.full,
            cost_share=found.cost,
            speedup_layers=speedup_layers(records, share),
            speedup_macs=self.macs.speedup(share, active) if self.macs else None,
            speedup_time=self.time.speedup(share, active) if self.time else None,
            exit_share=share,
        )

    def front(self, settings: Sequence[Setting], records: Records) -> list[FrontPoint]:
        """Those of the settings worth having, cheapest first."""
        return [self.describe(setting, records) for setting in pareto(settings)]


def make_point(
    chosen: Setting,
    settings: Sequence[Setting],
    promise: Promise,
    wish: Wish,
    parts: Mapping[str, Records],
    measured: Records,
    whole: Records,
    tables: Tables,
    notes: Sequence[str] = (),
) -> OperatingPoint:
    """The operating point of a setting.

    Args:
        settings: among which it was chosen.
        parts: disjoint parts of the records, by what each was for.
        measured: the part that all settings were measured on.
        whole: all records it was calibrated on.
    """
    meta = whole.meta
    return OperatingPoint(
        **dict(tables.describe(chosen, measured)),
        promise=promise.model_copy(update={"samples": len(measured), "split": meta.split}),
        wish=wish.about(meta, tables.costs),
        task=meta.task,
        full_accuracy=whole.task.value(measured.full_accuracy),
        n=len(measured),
        samples={name: len(part) for name, part in parts.items()},
        dataset=meta.dataset,
        split=meta.split,
        exit_names=meta.exit_names,
        positions=meta.positions,
        blocks=meta.blocks,
        fingerprint=meta.fingerprint,
        full_model=whole.full_model,
        records=whole.digest,
        engine=meta.engine,
        precision=meta.precision,
        versions=meta.versions,
        num_threads=meta.num_threads,
        costs=tables.costs,
        macs=tables.macs,
        time=tables.time,
        probes=_probes(whole, chosen.policy),
        notes=list(notes),
        front=tables.front(settings, measured),
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
