"""Compare runs: who is best at a budget, and who is cheapest at a loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from offramp.calibration import Records
from offramp.comparison.curve import Curve, trace_curve
from offramp.comparison.result import Comparison, Method, Spread
from offramp.comparison.siblings import record_runs
from offramp.costs import describe_environment
from offramp.errors import OfframpError
from offramp.policies import POLICIES
from offramp.runs import RunFolder
from offramp.tasks import Task

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)
CHOSEN, SPLIT = "calibration", "test"  # settings are chosen on the one, judged on the other


class Contestant(NamedTuple):
    """A run under a policy."""

    run: RunFolder
    policy: str

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe without what tells seeds apart, says where features were kept, or is of
        stages that trained nothing."""
        known = {k: v for k, v in self.run.config.dump().items() if k not in ("name", "seed")}
        return known | {
            "recipe": {
                k: v
                for k, v in known["recipe"].items()
                if k != "cache_folder" and not (isinstance(v, dict) and v.get("epochs") == 0)
            }
        }


def contestant(spec: str) -> Contestant:
    """``RUN`` or ``RUN:POLICY``; confidence when no policy is named."""
    path, found, policy = spec.rpartition(":")
    if not found or "/" in policy:
        path, policy = spec, "confidence"
    POLICIES.get(policy)
    return Contestant(RunFolder(path).check(), policy)


def compare(
    specs: Sequence[str],
    *,
    reference: str | None = None,
    budgets: Sequence[float] = BUDGETS,
    drops: Sequence[float] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare trained runs on the data set they share, from their records.

    Args:
        specs: ``RUN`` or ``RUN:POLICY``; runs of one recipe that differ by seed are one method.
        reference: run whose full model budgets and drops refer to; the first when omitted.
        budgets: shares of the reference's MACs.
        drops: losses against the reference, in percentage points of accuracy or in MAE; those of
            `Task.drops` when omitted.
        progress: show bars while records are made.

    Raises:
        OfframpError: for an unknown policy, or runs for another task or on other data than the
            reference.
    """
    contestants = [contestant(spec) for spec in specs]
    if not contestants:
        raise OfframpError("compare needs at least one run")
    main = RunFolder(reference).check() if reference else contestants[0].run
    for one in contestants:
        _same_task(main, one)
    for split in (CHOSEN, SPLIT):
        record_runs([one.run for one in contestants], split)
    judged, known = main.records(SPLIT, progress=progress), main.records(CHOSEN, progress=progress)
    macs, task = main.costs.full, known.task
    members: dict[str, list[tuple[Contestant, Records, Curve]]] = {}
    for one in contestants:
        held_out = one.run.records(SPLIT, progress=progress)
        _same_data(main, judged, one.run, held_out)
        curve = trace_curve(
            one.policy, one.run.records(CHOSEN, progress=progress), held_out, one.run.costs, macs
        )
        members.setdefault(f"{one.recipe}{one.policy}", []).append((one, held_out, curve))
    lowest = max(curve.calibrated[0].cost for group in members.values() for *_, curve in group)
    full = task.value(known.accuracy[-1])
    drops = task.drops(full) if drops is None else drops
    return Comparison(
        task=task.name,
        dataset=judged.meta.dataset,
        split=SPLIT,
        samples=len(judged),
        reference=main.path.name,
        reference_accuracy=task.value(judged.accuracy[-1]),
        reference_macs=macs,
        budgets=list(budgets),
        drops=list(drops),
        lowest=lowest,
        methods=[_method(group, task, budgets, drops, lowest, full) for group in members.values()],
        environment=describe_environment(),
    )


def _method(
    group: Sequence[tuple[Contestant, Records, Curve]],
    task: Task,
    budgets: Sequence[float],
    drops: Sequence[float],
    lowest: float,
    full: float,
) -> Method:
    first, judged, _ = group[0]
    curves = [curve for *_, curve in group]
    areas = [curve.area(lowest) for curve in curves]
    exits = zip(*(records.accuracy for _, records, _ in group), strict=True)
    named = {
        name: spread
        for name, values in zip(judged.meta.exit_names, exits, strict=True)
        if (spread := Spread.of([task.value(value) for value in values])) is not None
    }

    def at_budget(budget: float) -> Spread | None:
        spots = [curve.within(budget) for curve in curves]
        return Spread.of([spot and task.merit(spot.merit) for spot in spots])

    def at_drop(drop: float) -> Spread | None:
        spots = [curve.reaching(task.merit(full) - drop) for curve in curves]
        return Spread.of([spot and spot.cost for spot in spots])

    return Method(
        name=first.run.config.name,
        policy=first.policy,
        runs=[one.run.path.name for one, *_ in group],
        recipe=first.recipe,
        exits=named,
        full=named[judged.meta.exit_names[-1]],
        at_budget={f"{budget:g}": at_budget(budget) for budget in budgets},
        at_drop={f"{drop:g}": at_drop(drop) for drop in drops},
        area=Spread.of([area if area is None else task.merit(area) for area in areas]),
        training_seconds=Spread.of([_seconds(one.run) for one, *_ in group]),
        curve=[(spot.cost, task.merit(spot.merit)) for spot in curves[0].held_out],
    )


def _seconds(run: RunFolder) -> float | None:
    metrics = run.metrics()
    return metrics[-1].get("seconds") if metrics else None


def _same_task(main: RunFolder, one: Contestant) -> None:
    ours, theirs = main.model.config.task, one.run.model.config.task
    if ours != theirs:
        raise OfframpError(
            f"{one.run.path} is a model for {theirs}, {main.path} one for {ours}: only runs for "
            "the same task can be compared"
        )
    POLICIES.get(one.policy).check_task(theirs)


def _same_data(main: RunFolder, judged: Records, other: RunFolder, records: Records) -> None:
    ours, theirs = judged.meta.dataset, records.meta.dataset
    if ours != theirs or not judged.ids.equal(records.ids):
        raise OfframpError(
            f"{other.path} was tested on {len(records)} samples of {theirs}, {main.path} on "
            f"{len(judged)} of {ours}: only runs on the same samples can be compared"
        )
