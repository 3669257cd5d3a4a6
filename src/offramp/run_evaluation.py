"""Every exit and every operating point of a run on held-out data, from records."""

from typing import Any

import torch

from offramp import vision_cure
from offramp.backbones import build_backbone
from offramp.calibration import (
    Evaluation,
    OperatingPoint,
    Records,
    evaluate,
    replay,
)
from offramp.calibration.wholes import Wholes
from offramp.data import batches
from offramp.files import read_tensors, write_atomic, write_json
from offramp.reduced_run import point_records
from offramp.runs import RunFolder
from offramp.training.stage_run import PLAIN


def evaluate_run(run: RunFolder, *, split: str = "test", progress: bool = True) -> dict[str, Any]:
    """Every exit and every operating point on a split, from records; writes ``evaluation.json``."""
    records, costs = run.records(split, progress=progress), run.costs
    reached = costs.leave_cost(())
    blocks, wholes = records.meta.blocks_run, _wholes(run, records, split)
    figures = records.figures
    exits = [
        {
            "name": name,
            **figures[k],
            **({} if wholes is None else wholes.figures(records, records.prediction[:, k])),
            "layers": records.meta.baseline_blocks / blocks[k],
            "macs": costs.full / (reached[k] + (costs.head[k] if k < len(blocks) - 1 else 0)),
        }
        for k, name in enumerate(records.meta.exit_names)
    ]
    points = {
        name: _evaluated(point, _records_for(run, point, records, split, progress), wholes)
        for name, point in run.points().items()
    }
    result: dict[str, Any] = {
        "dataset": records.meta.dataset,
        "split": split,
        "task": records.meta.task,
        "samples": len(records),
        "fingerprint": records.meta.fingerprint,
        "exits": exits,
        "plain": _plain(run, split),
        "points": {name: point.model_dump(mode="json") for name, point in points.items()},
    }
    write_json(run.path / "evaluation.json", result)
    run.model.measured = {
        **{key: result[key] for key in ("dataset", "split", "task", "samples")},
        "rows": [
            *exits,
            *(
                {
                    "name": f"point {name}",
                    **point["figures"],
                    "layers": point["speedup_layers"],
                    "macs": point["speedup_macs"],
                }
                for name, point in result["points"].items()
            ),
        ],
    }
    write_atomic(run.path / "README.md", run.model.card())
    return result


def _wholes(run: RunFolder, records: Records, split: str) -> Wholes | None:
    """What the samples add up to, where the data set says so."""
    samples = run.data.split(split) if run.data.whole else None
    if samples is None or not torch.equal(samples.ids, records.ids):
        return None
    return Wholes(str(run.data.whole), samples.attributes[str(run.data.whole)])


def _evaluated(point: OperatingPoint, records: Records, wholes: Wholes | None) -> Evaluation:
    found = evaluate(point, records)
    if wholes is not None:
        said = replay(point.policy_object(), records, point.active).prediction
        found.figures |= wholes.figures(records, said)
        found.full_figures |= wholes.figures(records, records.full_prediction)
    return found


def _records_for(
    run: RunFolder, point: OperatingPoint, records: Records, split: str, progress: bool
) -> Records:
    """Records of the engine, precision and reducer a point belongs to."""
    meta = records.meta
    if (point.engine, point.precision, point.reducer) == (meta.engine, meta.precision, None):
        return records
    return point_records(run, point, split, progress=progress)


@torch.inference_mode()
def _plain(run: RunFolder, split: str) -> dict[str, float] | None:
    """Figures of the plain backbone that was trained on its own first, where there is one."""
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
    part, task, target = run.data.split(split), run.model.task, config.target
    said = []
    for batch in batches(part, batch_size=256, preprocessing=config.preprocessing):
        answer = backbone(batch.images)
        said.append(task.predict(answer if target is None else target.restore(answer)))
    return task.figures(torch.cat(said), part.labels)
