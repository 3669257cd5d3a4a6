"""A cascade as a run folder, with the operating point that keeps its promise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.calibration import OperatingPoint
from offramp.cascades.build import cascade
from offramp.cascades.contestants import Contestant
from offramp.cascades.pool import Pool
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.runs import RunFolder, calibrate_run
from offramp.runtime.latency import latency_table
from offramp.training.run_config import RunConfig, validated

TIMED_IMAGES = 64


def save_cascade(
    given: Sequence[Contestant], path: str | Path, *, average: bool = False, exits: bool = False
) -> RunFolder:
    """Put contestants one behind the other and write the result as a run.

    Its recipe names the runs it was made from; data and splits are those of the last.

    Args:
        path: folder; created.
        average, exits: as for `offramp.cascade`.

    Raises:
        OfframpError: when the folder holds a run, or a model cannot be built again by name.
    """
    folder = RunFolder(path)
    if (folder.path / "config.json").exists():
        raise OfframpError(f"{folder.path} already holds a finished run (choose another name)")
    model = cascade(
        [c.run.model for c in given], sizes=[c.size for c in given], average=average, exits=exits
    )
    if model.config.external:
        raise OfframpError(
            "a model of this cascade was given as an object, so a run cannot build it again"
        )
    model.recipe = _recipe(model, given, folder.path.resolve().name).dump()
    model.save_pretrained(folder.path)
    return RunFolder(path)


def promise(
    run: RunFolder,
    pool: Pool,
    max_drop: float,
    *,
    name: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> tuple[str, OperatingPoint]:
    """Calibrate a cascade to lose at most ``max_drop`` points against the pool's best model.

    The pool's records are of models that each got its own images; the point is chosen on the
    cascade's own records, where one image is made smaller for all of them.

    Args:
        run: from `save_cascade`.
        pool: with the best single model.
        batch_size: search on time measured at this batch size; on MACs when omitted.
        name, options: as for `offramp.runs.calibrate_run`.

    Raises:
        OfframpError: when the cascade cannot keep it.
    """
    keys = ("split", "engine", "precision", "progress")
    records = run.records(
        options.get("split", "calibration"),
        **{key: options[key] for key in keys[1:] if key in options},
    )
    best = 100 * float(pool.accuracy[pool.best])
    full = 100 * records.accuracy[-1]
    saved, point = calibrate_run(
        run,
        max_drop=round(full - best + max_drop, 9),
        name=name or f"max-drop-{max_drop:g}",
        times=None if batch_size is None else _times(run, batch_size, options),
        **options,
    )
    note = (
        f"chosen to lose at most {max_drop:g} points against {pool.names[pool.best]} alone "
        f"({best:.2f} % on these samples); the cascade's last exit has {full:.2f} %"
    )
    point = point.model_copy(update={"notes": [*point.notes, note]})
    point.save(run.path / "points" / f"{saved}.json")
    return saved, point


def _times(run: RunFolder, batch_size: int, options: Mapping[str, Any]) -> dict[int, CostTable]:
    """Time of every piece of the cascade, at the batch sizes that survivors come in."""
    engine = options.get("engine") or "torch"
    images = run.images("calibration", max(TIMED_IMAGES, batch_size))
    sizes = sorted({1, -(-batch_size // 4), batch_size})
    prepared = run.engine_options(engine, options.get("precision"))
    return latency_table(run.model, images, sizes, engine=engine, options=prepared)


def _recipe(model: MultiExitModel, given: Sequence[Contestant], name: str) -> RunConfig:
    values = {
        "name": name,
        "model": {
            "backbone": model.config.backbone,
            "backbone_args": model.config.backbone_args,
            "preprocessing": model.preprocessing.model_dump(mode="json"),
        },
        "exits": [spec.model_dump() for spec in model.config.exits],
        "data": given[-1].run.config.data.model_dump(),
        "recipe": {"name": "assembled", "runs": [c.name for c in given]},
        "device": "cpu",
    }
    config: RunConfig = validated(RunConfig, values, "")
    return config
