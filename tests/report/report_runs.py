"""A small finished run with invented records, so that a report takes seconds."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from offramp.calibration import Records, RecordsMeta
from offramp.costs.environment import describe_environment
from offramp.costs.table import CostTable
from offramp.data import DataSource
from offramp.files import write_atomic, write_json
from offramp.model import MultiExitModel
from offramp.run_evaluation import evaluate_run
from offramp.runs import RunFolder, calibrate_run, open_data
from offramp.training.run_config import RunConfig

SAMPLES = 240
DESCRIPTION: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "backbone": "deit_tiny_patch16_224",
        "image_size": 16,
        "backbone_args": {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3},
    },
    "data": {"name": "digits-grid", "limit": SAMPLES},
    "recipe": {"name": "lgvit"},
}


def invented_records(model: MultiExitModel, data: DataSource, split: str, *, seed: int) -> Records:
    """Records of exits that get better with depth and worse with every digit in the image."""
    draw = torch.Generator().manual_seed(seed)
    samples = data.split(split)
    labels, digits = samples.labels, samples.attributes["digits"]
    logits = torch.randn(len(labels), model.num_exits, 10, generator=draw)
    ease = torch.linspace(3, 7, model.num_exits) - 1.2 * (digits[:, None] - 1)
    rows = torch.arange(len(labels))[:, None], torch.arange(model.num_exits)
    logits[(*rows, labels[:, None])] += ease
    meta = RecordsMeta(
        fingerprint=model.fingerprint(),
        dataset=data.name,
        split=split,
        exit_names=model.exit_names,
        positions=list(model.positions),
        blocks=len(model.chain),
        standalone=model.standalone,
        versions={"torch": torch.__version__},
    )
    return Records.from_logits(logits, labels, ids=samples.ids, meta=meta)


def make_run(path: Path, layout: str = "lgvit") -> RunFolder:
    """A run with records, metrics and no operating point."""
    exits = {"layout": layout, "at": [1, 2, 3]}
    config = RunConfig.model_validate(DESCRIPTION | {"exits": exits})
    torch.manual_seed(0)
    model = config.build(open_data(config)).eval()
    model.save_pretrained(path)
    write_atomic(path / "recipe.yaml", yaml.safe_dump(config.dump(), sort_keys=False))
    run = RunFolder(path)
    for seed, split in enumerate(("calibration", "test")):
        records = invented_records(run.model, run.data, split, seed=seed)
        records.save(path / f"records-{split}.safetensors")
    stages = [("finetune", 1), ("end_to_end", 1), ("end_to_end", 2)]
    lines = [
        {
            "stage": stage,
            "stage_index": int(stage != "finetune"),
            "epoch": epoch,
            "step": epoch,
            "validation": dict.fromkeys(model.exit_names, 50.0 + epoch),
        }
        for stage, epoch in stages
    ]
    write_atomic(path / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def add_points(run: RunFolder) -> str:
    """Calibrate two points and evaluate; returns the newest's name."""
    calibrate_run(run, policy="entropy", max_cost=0.9, progress=False, name="older")
    name, _ = calibrate_run(run, max_drop=1.0, progress=False)
    evaluation = evaluate_run(run, progress=False)
    write_json(run.path / "evaluation.json", evaluation | {"plain": {"accuracy": 87.65}})
    return name


def latencies(run: RunFolder, *, size: int = 1) -> CostTable:
    """A latency table in proportion to MACs."""
    costs = run.costs
    scaled = {
        "body": tuple(piece / 1e5 for piece in costs.body),
        "head": tuple(piece / 5e4 for piece in costs.head),
    }
    return CostTable(unit="ms", full=costs.full / 1e5, meta={"batch_size": size}, **scaled)


def invented_benchmark(run: RunFolder, name: str, *, tables: bool = True) -> dict[str, Any]:
    """What ``offramp bench`` writes: 1.37× at batch 1, 1.52× at batch 8, a plain model at 1.6×."""
    _, point = run.point(name)
    batches = [
        {
            "batch_size": size,
            "images": 64,
            "rounds": 3,
            "full_ms": 2.0,
            "full_p95_ms": 2.2,
            "dynamic_ms": 2.0 / faster,
            "dynamic_p95_ms": 2.5 / faster,
            "ratio": 1 / faster,
            "ratio_quartiles": (1 / faster, 1 / faster),
            "speedup_time": faster,
            "speedup_layers": 1.7,
            "speedup_macs": 1.6,
            "efficiency": faster / 1.6,
            "segment_ms": [0.6] * (len(point.active) + 1),
            "ideal_ms": 1.9 / faster,
            "speedup_ideal": faster / 0.95,
            "realised": 0.95,
            "stream_ms": 1.0,
            "speedup_stream": 1.5,
            "no_exit_overhead": 0.994,
            "exit_share": list(point.exit_share),
            "statics": {"smaller": {"ms": 1.25, "ratio": 0.625}},
        }
        for size, faster in ((8, 1.52), (1, 1.37))
    ]
    result = {
        "engine": "torch",
        "precision": "float32",
        "fingerprint": run.model.fingerprint(),
        "exit_names": run.model.exit_names,
        "active": list(point.active),
        "environment": describe_environment(),
        "batches": batches,
    }
    benchmark: dict[str, Any] = {"point": name, "results": [result]}
    if tables:
        benchmark["latency"] = {
            str(size): latencies(run, size=size).model_dump(mode="json") for size in (8, 1)
        }
    return benchmark
