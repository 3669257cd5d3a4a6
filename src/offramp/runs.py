"""A run folder and the steps that fill it: train, record, calibrate."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
import yaml
from torch import Tensor

from offramp.calibration import (
    OperatingPoint,
    Records,
    calibrate,
)
from offramp.calibration.batch_time import quickest
from offramp.calibration.wish import Wanted, Wish
from offramp.costs.macs import model_costs
from offramp.costs.table import CostTable
from offramp.data import DataSource, batches, open_dataset
from offramp.errors import OfframpError
from offramp.files import read_json, write_atomic
from offramp.hub import RECIPE
from offramp.model import MultiExitModel
from offramp.recording import collect
from offramp.runtime.engines import ALIASES, ENGINES, EngineOptions
from offramp.training.checkpoint import CHECKPOINT
from offramp.training.context import LoopOptions
from offramp.training.loop import Trainer
from offramp.training.metrics import read_metrics
from offramp.training.run_config import RunConfig, load_run_config

RANGE_IMAGES = 256  # images from which int8 ranges are read


class RunFolder:
    """A trained model on disk, with everything measured about it.

    Files: ``recipe.yaml`` (as resolved), ``model.safetensors`` and ``config.json``,
    ``records-SPLIT.safetensors``, ``costs.json``, ``points/*.json``, ``metrics.jsonl``,
    ``evaluation.json``, ``benchmark.json``, ``report.html``; below ``reducers/`` the records of the
    model with fewer tokens (`offramp.reduced_run`).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check(self) -> "RunFolder":
        """Return the run, or raise `OfframpError` when there is no trained model in the folder."""
        if not (self.path / "config.json").is_file():
            unfinished = (self.path / CHECKPOINT).is_file()
            hint = "its training is unfinished: go on with --resume" if unfinished else "no run"
            raise OfframpError(f"{self.path}: {hint} (a run holds config.json)")
        return self

    @cached_property
    def config(self) -> RunConfig:
        return load_run_config(self.path / RECIPE)

    @cached_property
    def data(self) -> DataSource:
        return open_data(self.config)

    @cached_property
    def model(self) -> MultiExitModel:
        return MultiExitModel.from_pretrained(self.check().path)

    @cached_property
    def costs(self) -> CostTable:
        """MACs per image between exits, counted on what inference runs."""
        return model_costs(self.model)

    def records(
        self,
        split: str,
        *,
        engine: str = "torch",
        precision: str | None = None,
        progress: bool = True,
    ) -> Records:
        """Records of a split: from disk if this model made them, else collected and saved.

        Those of another engine or precision than torch at the model's own have their own file,
        ``records-SPLIT-ENGINE-PRECISION.safetensors``.
        """
        known = self.known_records(split, engine=engine, precision=precision)
        if known is not None:
            return known
        options = self.engine_options(engine, precision)
        records = collect(
            self.model,
            self.data,
            split=split,
            engine=engine,
            precision=options.precision,
            calibration=options.calibration,
            progress=progress,
        )
        records.save(self.records_file(split, engine=engine, precision=precision))
        return records

    def known_records(
        self, split: str, *, engine: str = "torch", precision: str | None = None
    ) -> Records | None:
        """Records of a split that are on disk and of this model."""
        path = self.records_file(split, engine=engine, precision=precision)
        records = Records.load(path) if path.is_file() else None
        mine = records is not None and records.meta.fingerprint == self.model.fingerprint()
        return records if mine else None

    def records_file(
        self, split: str, *, engine: str = "torch", precision: str | None = None
    ) -> Path:
        """Where the records of a split on an engine lie."""
        computed = ENGINES.get(engine)(self.engine_options(engine, precision)).precision
        suffix = "" if (engine, computed) == ("torch", "model") else f"-{engine}-{computed}"
        return self.path / f"records-{split}{suffix}.safetensors"

    def engine_options(
        self, engine: str = "torch", precision: str | None = None, **more: Any
    ) -> EngineOptions:
        """How to compile this run's model; at int8 with the images that ranges are read from."""
        wanted = precision and ALIASES.get(precision, precision)
        if wanted == str(next(self.model.parameters()).dtype).removeprefix("torch."):
            wanted = None if engine == "torch" else wanted  # torch as the model is
        images = self.images("calibration", RANGE_IMAGES) if wanted == "int8" else None
        return EngineOptions(precision=wanted, calibration=images, **more)

    def images(self, split: str, count: int) -> Tensor:
        """Preprocessed images (N, 3, H, W) of a split, N at most ``count``, always the same."""
        part = self.data.split(split).limited(count)
        stream = batches(part, batch_size=count, preprocessing=self.model.preprocessing)
        return next(iter(stream)).images

    def points(self) -> dict[str, OperatingPoint]:
        """Operating points by name, the oldest first."""
        files = sorted((self.path / "points").glob("*.json"), key=lambda f: f.stat().st_mtime)
        return {file.stem: OperatingPoint.load(file) for file in files}

    def point(
        self, name: str | None = None, *, engine: str | None = None, precision: str | None = None
    ) -> tuple[str, OperatingPoint]:
        """The operating point ``name``; None takes the newest.

        Args:
            engine, precision: what it must have been calibrated on; the engine's default precision
                when only the engine is given.
        """
        points = self.points()
        if not points:
            raise OfframpError(f"{self.path} has no operating point: run offramp calibrate first")
        if name is not None and name not in points:
            raise OfframpError(f"{self.path} has no point {name!r} (known: {', '.join(points)})")
        if engine is None:
            name = name or list(points)[-1]
            return name, points[name]
        computed = ENGINES.get(engine)(EngineOptions(precision=precision)).precision
        if computed == "model":
            computed = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        fitting = [
            key
            for key, point in points.items()
            if (point.engine, point.precision) == (engine, computed) and name in (None, key)
        ]
        if not fitting:
            which = f"point {name!r} is not" if name else f"{self.path} has no point"
            raise OfframpError(
                f"{which} calibrated on {engine} at {computed}: "
                f"offramp calibrate {self.path} --engine {engine} --precision {computed} …"
            )
        return fitting[-1], points[fitting[-1]]

    def evaluation(self) -> dict[str, Any] | None:
        return self._json("evaluation.json")

    def benchmark(self) -> dict[str, Any] | None:
        return self._json("benchmark.json")

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def _json(self, name: str) -> Any:
        return read_json(self.path / name) if (self.path / name).is_file() else None


def open_data(config: RunConfig) -> DataSource:
    """The data set of a run, with its splits cut as the recipe says."""
    section = config.data
    return open_dataset(
        section.name,
        calibration=section.calibration,
        validation=section.validation,
        limit=section.limit,
        options=section.options,
    )


def train_run(
    config: RunConfig,
    run: str | Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    progress: bool = True,
) -> RunFolder:
    """Train as ``config`` says into the folder ``run``.

    Args:
        config: a validated recipe file.
        run: folder; created.
        resume: go on from the folder's checkpoint if it has one.
        minutes: stop after so many minutes with a checkpoint; raises `OutOfTimeError`.
        progress: show progress bars.

    Raises:
        OfframpError: when the folder already holds a finished run, or an unfinished one and
            ``resume`` is off.
    """
    folder = RunFolder(run)
    if (folder.path / "config.json").is_file():
        if resume:
            return folder
        raise OfframpError(f"{folder.path} already holds a finished run (choose another name)")
    data = open_data(config)
    torch.manual_seed(config.seed)
    model = config.build(data)
    options = LoopOptions(
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        workers=config.workers,
        checkpoint_minutes=config.checkpoint_minutes,
        progress=progress,
        minutes=minutes,
    )
    trainer = Trainer(model, config.recipe, data, folder.path, options)
    trainer.check(resume=resume)
    write_atomic(folder.path / RECIPE, yaml.safe_dump(config.dump(), sort_keys=False))
    trainer.train(resume=resume)
    if trainer.context.accelerator.is_main_process:
        model.recipe = config.dump()
        model.cpu().save_pretrained(folder.path)
        (folder.path / CHECKPOINT).unlink(missing_ok=True)
    return folder


def calibrate_run(
    run: RunFolder,
    *,
    engine: str = "torch",
    precision: str | None = None,
    times: Mapping[int, CostTable] | None = None,
    name: str | None = None,
    split: str = "calibration",
    progress: bool = True,
    **wanted: Unpack[Wanted],
) -> tuple[str, OperatingPoint]:
    """Choose an operating point on the calibration split and save it as ``points/NAME.json``.

    Args:
        engine, precision: what the point will run on: it is calibrated on records made with them.
        times: latency tables by batch size; then the cost is measured time instead of MACs, at the
            largest of them; a latency is promised at batch size 1. For ``max_drop`` thresholds are
            searched on each table, and of the points found the one is taken that is quickest when
            survivors run in batches of their own size.
        name: the point's name; by default made from policy, target and engine.
        wanted: a policy, one target (``max_drop``, ``max_cost``, ``max_latency_ms`` or ``risk``)
            and what goes with them, as for `offramp.calibrate`.
    """
    Wish(**wanted).check()  # before the long pass over the data
    records = run.records(split, engine=engine, precision=precision, progress=progress)
    point = choose_point(run, records, times=times, **wanted)
    return save_point(run, point, name=name)


def choose_point(
    run: RunFolder,
    records: Records,
    *,
    times: Mapping[int, CostTable] | None = None,
    **wanted: Unpack[Wanted],
) -> OperatingPoint:
    """The operating point of `calibrate_run` from records of the run, not saved."""
    wish = Wish(**wanted).check()
    if wish.max_latency_ms is not None and 1 not in (times or {}):
        raise OfframpError("max_latency_ms needs times measured at batch size 1")

    def point_on(table: CostTable) -> OperatingPoint:
        return calibrate(records, costs=table, macs=run.costs, **wanted)

    found = [point_on(table) for table in _tables(run, wish, times)]
    if len(found) == 1 or not times:
        return found[0]
    best = quickest(found, times, point_on)
    asked = best.asked.model_copy(update={"batch_size": max(times)})
    return best.model_copy(update={"wish": asked})


def save_point(
    run: RunFolder, point: OperatingPoint, *, name: str | None = None, more: str = ""
) -> tuple[str, OperatingPoint]:
    """Write a point as ``points/NAME.json``; by default it is named after what it was chosen for.

    Args:
        more: what else tells it from others, behind a default name.
    """
    where = "" if point.engine == "torch" else f"-{point.engine}-{point.precision}"
    clock = "-time" if point.asked.cost == "time" else ""
    name = name or f"{point.policy['name']}-{point.asked.slug}{where}{clock}{more}"
    point.save(run.path / "points" / f"{name}.json")
    return name, point


def _tables(run: RunFolder, wish: Wish, times: Mapping[int, CostTable] | None) -> list[CostTable]:
    """What thresholds are searched on: several tables only where the points may be compared."""
    if not times:
        return [run.costs]
    if wish.max_drop is not None:
        return list(times.values())
    return [times[1 if wish.max_latency_ms is not None else max(times)]]
