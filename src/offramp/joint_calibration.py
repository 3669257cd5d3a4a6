"""Tokens and exits together: how many tokens to keep is chosen with the thresholds.

Every strength of a reducer is recorded on its own and searched on its own costs; the fronts are
then pooled into one, and the point is the best of them all that keeps the promise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Unpack

import torch

from offramp.calibration import FrontPoint, OperatingPoint, Records
from offramp.calibration.batch_time import batch_time
from offramp.calibration.targets import OutOfReachError
from offramp.calibration.wish import Wanted, Wish
from offramp.chains import chain
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.reduced_run import reduced_run, settled
from offramp.reducers import REDUCERS, ReducerSpec
from offramp.runs import RunFolder, choose_point, save_point
from offramp.token_steps import advise, edges, measure_reducers

Clock = Callable[[RunFolder], Mapping[int, CostTable]]
"""Measures a run's latency tables, by batch size."""


class Reached(NamedTuple):
    """A strength's own best point, and the times it was chosen by, where there are some."""

    point: OperatingPoint
    times: Mapping[int, CostTable] | None

    @property
    def cost(self) -> float:
        """Share of the unmodified model's cost."""
        if self.times is None or len(self.times) == 1:
            return self.point.cost_share
        batch = max(self.times)
        return batch_time(self.point, self.times, batch) / self.times[batch].full


def calibrate_jointly(
    run: RunFolder,
    reducers: Sequence[ReducerSpec],
    *,
    engine: str = "torch",
    precision: str | None = None,
    clock: Clock | None = None,
    name: str | None = None,
    split: str = "calibration",
    progress: bool = True,
    notes: Sequence[str] = (),
    **wanted: Unpack[Wanted],
) -> tuple[str, OperatingPoint]:
    """Choose a reducer's strength, thresholds and exits together; saved as ``points/NAME.json``.

    The full model, which losses are held against, is the run's as it was made. The point's
    ``reducer`` says what its model carries, and its ``front`` is that of all strengths together.

    Args:
        reducers: strengths to choose from, such as ToMe with r = 0, 4 and 8.
        clock: measures time; then it is the cost, and what a latency is promised by.
        notes: what else a reader of the point should know.
        engine, precision, name, split, wanted: as for `offramp.runs.calibrate_run`.

    Raises:
        OfframpError: for a risk, which is proved for one model alone; for a reducer that does not
            fit the model; or where no strength keeps the promise, with the closest.
    """
    wish = Wish(**wanted).check()
    if wish.risk is not None:
        raise OfframpError(
            "a risk is proved for one model: picking the luckiest of several would void the proof "
            "(choose the strength by another target)"
        )
    if not reducers:
        raise OfframpError("there is no strength to choose from")
    specs = list({repr(spec): spec for spec in (settled(run, spec) for spec in reducers)}.values())

    def recorded(variant: RunFolder) -> Records:
        return variant.records(split, engine=engine, precision=precision, progress=progress)

    full = recorded(run)
    reached: list[Reached] = []
    fronts: list[FrontPoint] = []
    failures: list[OutOfReachError] = []
    for spec in specs:
        variant = reduced_run(run, spec)
        records = full if spec is None else recorded(variant).against(full)
        times = None if clock is None else clock(variant)
        try:
            point = choose_point(variant, records, times=times, **wanted)
        except OutOfReachError as error:
            failures.append(error)
            fronts += _under(spec, error.front)
        else:
            reached.append(Reached(point.model_copy(update={"reducer": spec}), times))
            fronts += _under(spec, point.front)
    if not reached:
        raise min(failures, key=lambda failure: failure.nearest)

    def rank(found: Reached) -> tuple[float, float]:
        ranks = found.cost, found.point.drop
        return ranks if wish.max_drop is not None else ranks[::-1]

    best = min(reached, key=rank).point
    update = {
        "wish": best.asked.model_copy(update={"reducers": tuple(reducers)}),
        "front": joint_front(fronts),
        "notes": [*best.notes, *notes],
    }
    tried = "-".join(dict.fromkeys(spec.name for spec in reducers))
    return save_point(run, best.model_copy(update=update), name=name, more=f"-{tried}")


def worthwhile(
    run: RunFolder,
    spec: ReducerSpec,
    option: str,
    *,
    engine: str = "torch",
    precision: str | None = None,
    batch_size: int = 1,
) -> tuple[list[ReducerSpec], str]:
    """Strengths of a reducer that save time on an engine at a batch size, and what was found.

    Time goes down in steps, so only the gentlest strength of each step is worth recording; the
    first returned leaves nothing out, and is the only one where none is quicker.

    Args:
        option: what says how many tokens go, such as ``keep``.

    Raises:
        OfframpError: for a reducer that goes by another option, or by no single one.
    """
    model = run.model
    links = chain(model.backbone, image_size=model.preprocessing.image_size)
    known = REDUCERS.get(spec.name).strengths(links)
    if option not in known:
        goes_by = f"goes by {next(iter(known))}" if known else "has no single strength"
        raise OfframpError(f"reducer {spec.name} {goes_by}: {option} = auto is not for it")
    untouched, *candidates = (spec.at(**{option: value}) for value in known[option])
    images = run.images("calibration", batch_size)
    images = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]
    options = run.engine_options(engine, precision, batch_size=batch_size)
    with torch.no_grad():
        timings = measure_reducers(links, candidates, images, engine=engine, options=options)
    found = [(edge.spec, edge.ratio) for edge in edges(timings) if edge.spec is not None]
    where = f"auto, {engine} at batch {batch_size}"
    if not found:
        return [untouched], f"{where}: {advise(timings).reason}, so no token is left out"
    steps = ", ".join(
        f"{100 * ratio:.0f} % at {option} = {edge.options[option]}" for edge, ratio in found
    )
    return [untouched, *(edge for edge, _ in found)], f"{where}: steps of time are {steps}"


def joint_front(settings: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Settings of any strength that no other beats in both cost and loss, cheapest first."""
    front: list[FrontPoint] = []
    for setting in sorted(settings, key=lambda s: (s.cost_share, s.drop)):
        if not front or setting.drop < front[-1].drop:
            front.append(setting)
    return front


def _under(spec: ReducerSpec | None, front: Iterable[FrontPoint]) -> list[FrontPoint]:
    return [setting.model_copy(update={"reducer": spec}) for setting in front]
