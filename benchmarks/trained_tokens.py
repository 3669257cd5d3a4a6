"""Models trained for fewer tokens beside the plain one: accuracy, MACs and throughput.

    python benchmarks/trained_tokens.py runs/EVO_VIT … --plain runs/FINETUNE --also classifier=class

All runs were fine-tuned alike on the same data, so that the reducer is the only difference.
Accuracy is of the test split, and of all images that nothing was trained on (``held_out``: with the
calibration split, for sets too small to have a large test split). Whole models without exits are
timed on each engine and batch size in turns with the plain one. Writes
benchmarks/results/trained_tokens.json. Let nothing else run on the machine meanwhile.
"""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from offramp.costs import describe_environment
from offramp.costs.macs import count_macs
from offramp.reduced_run import ReducedRun, reduced_run
from offramp.runs import RunFolder
from offramp.runtime.engines import EngineOptions
from offramp.runtime.static import static_program
from offramp.token_steps import time_programs, token_count

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for, timing

HELD_OUT = ("test", "calibration")


def row(run: RunFolder) -> dict[str, Any]:
    """What a run's whole model is."""
    links, spec = run.model.chain, run.model.config.reducer
    right = {}
    for split in HELD_OUT:
        records = run.records(split, progress=False)
        right[split] = records.scalars["correct"][:, -1].numpy()
    return {
        "run": (run.run if isinstance(run, ReducedRun) else run).path.name,
        "reducer": spec and spec.model_dump(),
        "accuracy": 100 * float(right["test"].mean()),
        "held_out": 100 * float(np.concatenate(list(right.values())).mean()),
        "samples": len(right["test"]),
        "held_out_samples": sum(len(part) for part in right.values()),
        "macs": count_macs(links, run.images("test", 1)),
        "tokens": token_count(links),
    }


def times_on(
    runs: list[RunFolder], engine: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Throughput of every run's model at every batch size."""
    sizes = [int(size) for size in options.batch.split(",")]
    settings = EngineOptions(threads=options.threads, batch_size=max(sizes))
    chains = [run.model.chain for run in runs]
    programs = [static_program(c, c.image_size, engine, options=settings) for c in chains]
    found = []
    for batch in sizes:
        took = time_programs(programs, run_images(runs[0], batch), rounds=options.rounds)
        rates = [[1000 * batch / ms for ms in times] for times in took]
        found.append(
            {
                "engine": engine,
                "batch": batch,
                "images_per_second": [median(column) for column in zip(*rates, strict=True)],
                "speedup": [median(t[0] / t[k] for t in took) for k in range(len(runs))],
            }
        )
    return found


def run_images(run: RunFolder, count: int) -> torch.Tensor:
    """So many test images, again from the first where there are fewer."""
    images = run.images("test", count)
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


def main(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    runs = [RunFolder(path).check() for path in (options.plain, *options.runs)]
    for name, value in (pair.split("=", 1) for pair in options.also):
        reducers = [(run, run.model.config.reducer) for run in runs]
        runs += [reduced_run(run, spec.at(**{name: value})) for run, spec in reducers if spec]
    with torch.inference_mode():
        rows = [row(run) for run in runs]
        times = [row for e in options.engine.split(",") for row in times_on(runs, e, options)]
    return {
        "benchmark": "trained_tokens",
        "command": "python benchmarks/trained_tokens.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "dataset": runs[0].data.name,
        "rows": rows,
        "times": times,
    }


def show(found: dict[str, Any]) -> None:
    for entry in found["rows"]:
        print(f"{entry['run']:<44} {entry['accuracy']:.2f} % ({entry['held_out']:.2f} %)")
    for entry in found["times"]:
        told = "  ".join(f"{ratio:.2f}x" for ratio in entry["speedup"])
        print(f"{entry['engine']}, batch {entry['batch']}: {told}")


if __name__ == "__main__":
    parser = timing(parser_for(__doc__, "trained_tokens"), batch="1,32,128")
    parser.add_argument("runs", nargs="+", type=Path, help="runs with a reducer")
    parser.add_argument(
        "--also", action="append", default=[], help="OPTION=VALUE the reducers are tried with too"
    )
    parser.add_argument("--plain", type=Path, required=True, help="the run without one")
    carry_out(parser, main, show)
