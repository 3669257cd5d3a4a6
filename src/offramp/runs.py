"""A run folder and the steps that fill it: train, record, evaluate, calibrate."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from offramp import vision_cure
from offramp.backbones import build_backbone
from offramp.calibration import OperatingPoint, Records, calibrate, evaluate
from offramp.costs.macs import model_costs
from offramp.costs.table import CostTable
from offramp.data import DataSource, batches, open_dataset
from offramp.errors import OfframpError
from offramp.files import read_json, read_tensors, write_atomic, write_json
from offramp.hub import RECIPE
from offramp.model import MultiExitModel
from offramp.recording import collect
from offramp.training.checkpoint import CHECKPOINT
from offramp.training.context import LoopOptions
from offramp.training.loop import Trainer
from offramp.training.metrics import read_metrics
from offramp.training.run_config import RunConfig, load_run_config
from offramp.training.stage_run import PLAIN


class RunFolder:
    """A trained model on disk, with everything measured about it.

    Files: ``recipe.yaml`` (as resolved), ``model.safetensors`` and ``config.json``,
    ``records-SPLIT.safetensors``, ``costs.json``, ``points/*.json``, ``metrics.jsonl``,
    ``evaluation.json``, ``benchmark.json``, ``report.html``.
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

    def records(self, split: str, *, progress: bool = True) -> Records:
        """Records of a split: from disk if this model made them, else collected and saved."""
        path = self.path / f"records-{split}.safetensors"
        if path.is_file():
            records = Records.load(path)
            if records.meta.fingerprint == self.model.fingerprint():
                return records
        records = collect(self.model, self.data, split=split, progress=progress)
        records.save(path)
        return records

    def points(self) -> dict[str, OperatingPoint]:
        """Operating points by name, the oldest first."""
        files = sorted((self.path / "points").glob("*.json"), key=lambda f: f.stat().st_mtime)
        return {file.stem: OperatingPoint.load(file) for file in files}

    def point(self, name: str | None = None) -> tuple[str, OperatingPoint]:
        """The operating point ``name``; None takes the newest."""
        points = self.points()
        if not points:
            raise OfframpError(f"{self.path} has no operating point: run offramp calibrate first")
        if name is None:
            name = list(points)[-1]
        if name not in points:
            raise OfframpError(f"{self.path} has no point {name!r} (known: {', '.join(points)})")
        return name, points[name]

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
    model = config.build(data.classes)
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
    policy: str = "confidence",
    max_drop: float | None = None,
    max_cost: float | None = None,
    certainty: float | None = None,
    temperatures: bool = False,
    times: CostTable | None = None,
    name: str | None = None,
    split: str = "calibration",
    progress: bool = True,
) -> tuple[str, OperatingPoint]:
    """Choose an operating point on the calibration split and save it as ``points/NAME.json``.

    Args:
        policy: registered policy.
        max_drop: percentage points of accuracy that may be lost against the full model.
        max_cost: share of the full model's cost that may be spent.
        temperatures: fit a temperature per exit first.
        certainty: for ``max_drop``, how sure to be, as for `offramp.calibrate`.
        times: a latency table; then the cost is measured time instead of MACs.
        name: the point's name; by default made from policy and target.
    """
    records = run.records(split, progress=progress)
    point = calibrate(
        records,
        policy=policy,
        max_drop=max_drop,
        max_cost=max_cost,
        certainty=certainty,
        temperatures=temperatures,
        costs=times or run.costs,
        macs=run.costs,
    )
    target = f"max-drop-{max_drop:g}" if max_drop is not None else f"max-cost-{max_cost:g}"
    name = name or f"{policy}-{target}{'-time' if times else ''}"
    point.save(run.path / "points" / f"{name}.json")
    return name, point


def evaluate_run(run: RunFolder, *, split: str = "test", progress: bool = True) -> dict[str, Any]:
    """Every exit and every operating point on a split, from records; writes ``evaluation.json``."""
    records, costs = run.records(split, progress=progress), run.costs
    reached = costs.leave_cost(())
    blocks = records.meta.blocks_run
    exits = [
        {
            "name": name,
            "accuracy": 100 * accuracy,
            "layers": blocks[-1] / blocks[k],
            "macs": costs.full / (reached[k] + (costs.head[k] if k < len(blocks) - 1 else 0)),
        }
        for k, (name, accuracy) in enumerate(
            zip(records.meta.exit_names, records.accuracy, strict=True)
        )
    ]
    points = {name: evaluate(point, records) for name, point in run.points().items()}
    result: dict[str, Any] = {
        "dataset": records.meta.dataset,
        "split": split,
        "samples": len(records),
        "fingerprint": records.meta.fingerprint,
        "exits": exits,
        "plain": _plain(run, split),
        "points": {name: point.model_dump(mode="json") for name, point in points.items()},
    }
    write_json(run.path / "evaluation.json", result)
    run.model.measured = {
        **{key: result[key] for key in ("dataset", "split", "samples")},
        "rows": [
            *exits,
            *(
                {
                    "name": f"point {name}",
                    "accuracy": point["accuracy"],
                    "layers": point["speedup_layers"],
                    "macs": point["speedup_macs"],
                }
                for name, point in result["points"].items()
            ),
        ],
    }
    write_atomic(run.path / "README.md", run.model.card())
    return result


@torch.inference_mode()
def _plain(run: RunFolder, split: str) -> dict[str, float] | None:
    """Accuracy of the plain backbone that was trained on its own first, where there is one."""
    weights = run.path / PLAIN
    if not weights.is_file():
        return None
    vision_cure.ensure()
    config = run.model.config
    backbone = build_backbone(
        config.backbone, num_classes=config.num_classes, arguments=config.backbone_args
    )
    backbone.load_state_dict(read_tensors(weights))
    backbone.eval()
    part, hits = run.data.split(split), 0
    for batch in batches(part, batch_size=256, preprocessing=config.preprocessing):
        hits += int((backbone(batch.images).argmax(-1) == batch.labels).sum())
    return {"accuracy": 100 * hits / len(part)}
