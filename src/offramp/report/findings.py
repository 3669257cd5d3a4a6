"""Findings: everything a report says about a run, gathered before anything is drawn."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from offramp.calibration import (
    Decisions,
    Evaluation,
    FrontPoint,
    OperatingPoint,
    Records,
    evaluate,
    replay,
    static_points,
)
from offramp.calibration.front import measure, speedup_layers
from offramp.data.source import Split
from offramp.errors import OfframpError
from offramp.policies.base import policy_from_config
from offramp.report.timing import Timing, read_timing
from offramp.runs import RunFolder
from offramp.tasks import Task, figure_keys


@dataclass(frozen=True)
class Spot:
    """One way to run the model: accuracy in percent, or the MAE of a regression, and its three
    speed-ups, never mixed."""

    name: str
    accuracy: float
    layers: float
    macs: float | None
    time: float | None = None


@dataclass(frozen=True)
class Chosen:
    """An operating point on the evaluated split."""

    name: str
    point: OperatingPoint
    evaluation: Evaluation
    decisions: Decisions
    spot: Spot


@dataclass(frozen=True)
class Front:
    """Front points of one policy: chosen on the calibration split, measured on the evaluated one.

    ``settings`` and ``spots`` go together, cheapest first.
    """

    label: str
    settings: list[FrontPoint]
    spots: list[Spot]


class Findings:
    """What is known about a run on its evaluated split.

    Attributes:
        run: the folder.
        records: of the evaluated split.
        timing: measured time, empty where there is none.
        static: every early exit, if all samples left there.
        full: the model with every sample at its last exit.
        chosen: operating points, the newest first.
        more: figures of every exit (K,) besides the task's metric, such as ``rmse``.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run.check()
        evaluation = run.evaluation() or {}
        self.split: str = evaluation.get("split", "test")
        self.records: Records = run.records(self.split)
        points = dict(reversed(run.points().items()))
        tables = [point.time for point in points.values() if point.time is not None]
        self.timing: Timing = read_timing(
            run.benchmark(),
            fingerprint=self.records.meta.fingerprint,
            table=tables[0] if tables else None,
        )
        if evaluation.get("fingerprint") not in (None, self.records.meta.fingerprint):
            evaluation = {}  # of earlier weights
        rows = evaluation.get("exits") or self.records.figures
        keys = figure_keys(rows[0])[1:]
        self.more: list[dict[str, float]] = [{key: row[key] for key in keys} for row in rows]
        plain = evaluation.get("plain")
        self.plain: float | None = plain[self.task.key] if plain else None
        full = self.task.value(self.records.accuracy[-1])
        self.full = Spot("full model", full, 1.0, 1.0, 1.0 if self.timing.measured else None)
        self.static = self._static()
        self.chosen = [self._choose(name, point) for name, point in points.items()]

    @property
    def task(self) -> Task:
        """What kind of answers these are."""
        return self.records.task

    @property
    def headline(self) -> Chosen | None:
        """The newest operating point."""
        return self.chosen[0] if self.chosen else None

    @property
    def exit_names(self) -> list[str]:
        return self.records.meta.exit_names

    @cached_property
    def fronts(self) -> list[Front]:
        """One front per policy and searched cost, that of the newest point first."""
        found: dict[str, list[FrontPoint]] = {}
        for chosen in self.chosen:
            point = chosen.point
            on = "" if point.costs.unit == "MACs" else f", searched on {point.costs.unit}"
            found.setdefault(f"{point.policy['name']}{on}", []).extend(point.front)
        return [self._front(label, settings) for label, settings in found.items()]

    @cached_property
    def samples(self) -> Split | None:
        """The evaluated split's images, or None where they are not on this machine."""
        try:
            return self.run.data.split(self.split)
        except OfframpError:
            return None

    @cached_property
    def positions(self) -> dict[int, int]:
        """Place in the split of every sample id."""
        ids = [] if self.samples is None else self.samples.ids.tolist()
        return {sample: place for place, sample in enumerate(ids)}

    def _static(self) -> list[Spot]:
        table = self.timing.table
        times = [p.speedup for p in static_points(self.records, table)] if table else []
        spots = static_points(self.records, self.run.costs)[:-1]
        return [
            Spot(s.name, s.accuracy, s.layers, s.speedup, times[k] if times else None)
            for k, s in enumerate(spots)
        ]

    def _choose(self, name: str, point: OperatingPoint) -> Chosen:
        evaluation = evaluate(point, self.records)
        decisions = replay(point.policy_object(), self.records, point.active)
        spot = self._spot(name, point, decisions)
        if timed := self.timing.batches(name):  # measured end to end beats added pieces
            spot = Spot(name, spot.accuracy, spot.layers, spot.macs, timed[0].speedup_time)
        return Chosen(name, point, evaluation, decisions, spot)

    def _front(self, label: str, settings: Iterable[FrontPoint]) -> Front:
        different = {repr((s.policy, s.active)): s for s in settings}
        ordered = sorted(different.values(), key=lambda s: s.cost_share)
        spots = [
            self._spot("", s, replay(policy_from_config(s.policy), self.records, s.active))
            for s in ordered
        ]
        return Front(label, ordered, spots)

    def _spot(self, name: str, setting: FrontPoint, decisions: Decisions) -> Spot:
        found = measure(decisions, self.records, self.run.costs, setting.active)
        table = self.timing.table
        return Spot(
            name=name,
            accuracy=self.task.value(found.accuracy),
            layers=speedup_layers(self.records, found.exit_share),
            macs=1 / found.cost,
            time=table.speedup(found.exit_share, setting.active) if table else None,
        )
