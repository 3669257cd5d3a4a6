"""Accuracy against layers and MACs of trained runs, on the test split.

    python benchmarks/early_exit.py runs/A runs/B --results-file benchmarks/results/NAME.json

Thresholds are chosen on the calibration split, every number is measured on the test split: the
whole front, the speed-up at fixed losses, the loss at fixed layer speed-ups, who leaves where.
``shared`` is the usual way in papers: one confidence threshold for all exits, swept on the test
split itself, which is kind to it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from offramp.calibration import OperatingPoint, Records, calibrate, evaluate
from offramp.calibration.choice import block_costs
from offramp.calibration.replay import replay
from offramp.costs import CostTable, describe_environment
from offramp.policies import Confidence
from offramp.run_evaluation import evaluate_run
from offramp.runs import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

LOSSES = (0.5, 1.0, 2.0, 4.0)
SPEEDUPS = (1.5, 1.87)
THRESHOLDS = np.linspace(0.2, 0.999, 81)


def measure(path: Path, reference: float | None) -> dict[str, Any]:
    """Everything about one run; losses are against its own final exit and, if given, another."""
    run = RunFolder(path).check()
    chosen, test, costs = run.records("calibration"), run.records("test"), run.costs
    blocks = block_costs(chosen)
    full = 100 * test.accuracy[-1]
    point = calibrate(chosen, max_drop=max(LOSSES), costs=costs)
    front = [point.model_copy(update=setting.model_dump()) for setting in point.front]
    return {
        "run": run.config.name,
        "recipe": run.config.dump()["recipe"],
        "samples": len(test),
        "full_accuracy": full,
        "reference_accuracy": reference,
        "exits": evaluate_run(run)["exits"],
        "macs": costs.model_dump(mode="json"),
        "front": [_row(setting, test) for setting in front],
        "at_loss": {
            f"{loss:g}": _row(calibrate(chosen, costs=costs, max_drop=loss), test)
            for loss in LOSSES
        },
        "at_layer_speedup": {
            f"{ratio:g}": _row(
                calibrate(chosen, costs=blocks, macs=costs, max_cost=1 / ratio), test
            )
            for ratio in SPEEDUPS
        },
        "shared": _shared(test, costs),
    }


def _row(point: OperatingPoint, test: Records) -> dict[str, Any]:
    """A setting chosen on the calibration split, measured on the test split."""
    found = evaluate(point, test)
    return {
        "accuracy": found.accuracy,
        "drop": found.drop,
        "drop_interval": list(found.drop_interval),
        "layers": found.speedup_layers,
        "macs": found.speedup_macs,
        "active": list(point.active),
        "exit_share": list(found.exit_share),
    }


def _shared(records: Records, costs: CostTable) -> list[dict[str, float]]:
    """One threshold for every exit, each value replayed on the records."""
    rows = []
    depth = records.meta.blocks
    for threshold in THRESHOLDS:
        decisions = replay(Confidence.shared(float(threshold), records.num_exits), records)
        right = (decisions.prediction == records.labels).double().mean().item()
        share = decisions.exit_share
        mean = sum(s * b for s, b in zip(share, records.meta.blocks_run, strict=True))
        rows.append(
            {
                "threshold": float(threshold),
                "drop": 100 * (records.accuracy[-1] - right),
                "layers": depth / mean,
                "macs": costs.speedup(share),
            }
        )
    return rows


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    reference = None
    if arguments.reference:
        records = RunFolder(arguments.reference).check().records("test")
        reference = 100 * records.accuracy[-1]
    return {
        "benchmark": "early_exit",
        "command": "python benchmarks/early_exit.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "runs": {run.name: measure(run, reference) for run in arguments.runs},
    }


if __name__ == "__main__":
    parser = parser_for(__doc__, "early_exit")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--reference", type=Path, help="run of the plain fine-tuned model")
    carry_out(parser, main)
