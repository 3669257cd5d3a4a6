"""Findings: everything a report says about a run, gathered before anything is drawn."""

from collections.abc import Iterable, Iterator
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
)
from offramp.calibration.front import measure, speedup_layers
from offramp.data.source import Split
from offramp.errors import OfframpError
from offramp.policies.base import policy_from_config
from offramp.reduced_run import point_records, reduced_run
from offramp.report.spots import Spot, oracle_spots, static_spots
from offramp.report.timing import Timing, read_timing
from offramp.runs import RunFolder
from offramp.tasks import Task, figure_keys


@dataclass(frozen=True)
class Chosen:
    """An operating point on the evaluated split.

    ``records`` are those of the point's own engine and reducer.
    """

    name: str
    point: OperatingPoint
    records: Records
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
        timed = [point for point in points.values() if point.time is not None]
        self.timing: Timing = read_timing(
            run.benchmark(),
            fingerprints={self.records.meta.fingerprint, *(p.fingerprint for p in points.values())},
            table=timed[0].time if timed else None,
        )
        self._times = {_strength(point): point.time for point in reversed(timed)}
        if self.timing.table not in self._times.values():
            benched = points.get(self.timing.point or "")
            self._times["" if benched is None else _strength(benched)] = self.timing.table
        self._costs = {"": run.costs}
        if evaluation.get("fingerprint") not in (None, self.records.meta.fingerprint):
            evaluation = {}  # of earlier weights
        rows = evaluation.get("exits") or self.records.figures
        keys = figure_keys(rows[0])[1:]
        self.more: list[dict[str, float]] = [{key: row[key] for key in keys} for row in rows]
        plain = evaluation.get("plain")
        self.plain: float | None = plain[self.task.key] if plain else None
        full = self.task.value(self.records.accuracy[-1])
        self.full = Spot("full model", full, 1.0, 1.0, 1.0 if self.timing.measured else None)
        self.static = static_spots(self.records, run.costs, self._times.get(""))
        self.chosen = [self._choose(name, point) for name, point in points.items()]

    @property
    def task(self) -> Task:
        """What kind of answers these are."""
        return self.records.task

    @property
    def headline(self) -> Chosen | None:
        """The newest operating point."""
        return self.chosen[0] if self.chosen else None

    def more_of(self, records: Records) -> list[dict[str, float | None]]:
        """``more`` of a point's records; of other ones than ``records``, what these tell alone."""
        if records.digest == self.records.digest:
            return [dict(row) for row in self.more]
        return [{key: row.get(key) for key in self.more[0]} for row in records.figures]

    @property
    def exit_names(self) -> list[str]:
        return self.records.meta.exit_names

    @cached_property
    def fronts(self) -> list[Front]:
        """One front per policy and searched cost, that of the newest point first."""
        found: dict[str, list[tuple[FrontPoint, Records]]] = {}
        for chosen in self.chosen:
            point = chosen.point
            on = "" if point.costs.unit == "MACs" else f", searched on {point.costs.unit}"
            found.setdefault(f"{point.policy['name']}{on}", []).extend(self._recorded(chosen))
        return [self._front(label, settings) for label, settings in found.items()]

    @cached_property
    def oracle(self) -> list[Spot]:
        """What nobody can beat on the newest point's records; see `oracle_spots`."""
        if self.headline is None:
            return oracle_spots(self.records, self.run.costs, self._times.get(""))
        strength = _strength(self.headline.point)
        costs, times = self._costs[strength], self._times.get(strength)
        return oracle_spots(self.headline.records, costs, times)

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

    def _choose(self, name: str, point: OperatingPoint) -> Chosen:
        records = point_records(self.run, point, self.split)
        evaluation = evaluate(point, records)
        decisions = replay(point.policy_object(), records, point.active)
        spot = self._spot(name, point, decisions, records)
        if timed := self.timing.batches(name):  # measured end to end beats added pieces
            spot = Spot(name, spot.accuracy, spot.layers, spot.macs, timed[0].speedup_time)
        return Chosen(name, point, records, evaluation, decisions, spot)

    def _recorded(self, chosen: Chosen) -> Iterator[tuple[FrontPoint, Records]]:
        """A point's front, as far as the evaluated split was recorded: a report runs no model."""
        known = {_strength(chosen.point): chosen.records, "": self.records}
        if chosen.records.meta.engine != self.records.meta.engine:
            del known[""]
        for setting in chosen.point.front:
            if _strength(setting) in known:
                yield setting, known[_strength(setting)]

    def _front(self, label: str, settings: Iterable[tuple[FrontPoint, Records]]) -> Front:
        different = {repr((s.reducer, s.policy, s.active)): (s, records) for s, records in settings}
        ordered = sorted(different.values(), key=lambda found: found[0].cost_share)
        spots = [
            self._spot("", s, replay(policy_from_config(s.policy), records, s.active), records)
            for s, records in ordered
        ]
        return Front(label, [setting for setting, _ in ordered], spots)

    def _spot(self, name: str, setting: FrontPoint, decisions: Decisions, records: Records) -> Spot:
        strength = _strength(setting)
        if strength not in self._costs:
            self._costs[strength] = reduced_run(self.run, setting.reducer).costs
        found = measure(decisions, records, self._costs[strength], setting.active)
        table = self._times.get(strength)
        return Spot(
            name=name,
            accuracy=self.task.value(found.accuracy),
            layers=speedup_layers(records, found.exit_share),
            macs=1 / found.cost,
            time=table.speedup(found.exit_share, setting.active) if table else None,
        )


def _strength(setting: FrontPoint) -> str:
    """What tells a setting's costs from those of the model as it was made."""
    return "" if setting.reducer is None else setting.reducer.slug
