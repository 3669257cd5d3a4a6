"""The compared methods on an engine: each calibrated there and timed against its own backbone."""

from collections.abc import Sequence

from offramp.calibration import evaluate
from offramp.calibration.batch_time import survivor_sizes
from offramp.comparison.result import Comparison, Method, Timed
from offramp.comparison.table import CHOSEN, SPLIT, Contestant, contestant
from offramp.runs import calibrate_run
from offramp.runtime import bench, latency_table
from offramp.tasks import task_named

POINT = "compared"


def time_methods(
    found: Comparison,
    specs: Sequence[str],
    *,
    engine: str,
    precision: str | None = None,
    images: int = 64,
    batch_size: int = 1,
    rounds: int = 5,
    max_drop: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Add to every method what its first run takes on ``engine`` at a promise of ``max_drop``.

    The setting is the one that is quickest by the run's latency table there, not the one of the
    fewest MACs: an exit whose call takes longer than it saves is left out.

    Args:
        found: from `compare`, for the same ``specs``.
        images: real test images per round.
        max_drop: against each run's own full model; the middle one of `Task.drops` when omitted.
    """
    if max_drop is None:
        max_drop = task_named(found.task).drops(found.reference_accuracy)[1]
    contestants = [contestant(spec) for spec in specs]

    def timed(method: Method) -> Method:
        first = next(c for c in contestants if _belongs(c, method))
        one = _time(first, engine, precision, images, batch_size, rounds, max_drop, progress)
        return method.model_copy(update={"timed": [*method.timed, one]})

    return found.model_copy(update={"methods": [timed(method) for method in found.methods]})


def _belongs(one: Contestant, method: Method) -> bool:
    return one.run.path.name == method.runs[0] and one.policy == method.policy


def _time(
    one: Contestant,
    engine: str,
    precision: str | None,
    images: int,
    batch_size: int,
    rounds: int,
    max_drop: float,
    progress: bool,
) -> Timed:
    run = one.run
    options = run.engine_options(engine, precision, batch_size=batch_size)
    times = latency_table(
        run.model,
        run.images(CHOSEN, images),
        survivor_sizes(batch_size),
        engine=engine,
        options=options,
    )
    _, point = calibrate_run(
        run,
        policy=one.policy,
        max_drop=max_drop,
        engine=engine,
        precision=precision,
        times=times,
        name=f"{POINT}-{one.policy}",
        progress=progress,
    )
    records = run.records(SPLIT, engine=engine, precision=precision, progress=progress)
    row = bench(
        run.model,
        point,
        run.images(SPLIT, images),
        [batch_size],
        rounds=rounds,
        costs=run.costs,
        engine=engine,
        options=options,
    ).batches[0]
    return Timed(
        engine=f"{engine}:{records.meta.precision}",
        max_drop=max_drop,
        batch_size=batch_size,
        ms=row.dynamic_ms,
        speedup=row.speedup_time,
        accuracy=evaluate(point, records).accuracy,
    )
