"""Does compaction pay? Time next to MACs on real images, and what a runner costs without exits.

    python benchmarks/compaction.py runs/NAME --point 'drop-1' --batch 1,8,64

Reads a run folder: its model, data set and operating points. Measures every chosen point against
the unmodified backbone (see `offramp.runtime.bench`) and, for each batch size, the time of every
segment and head. Writes one JSON file with the hardware, versions, threads, commit and command.
Let nothing else run on the machine meanwhile.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from offramp.calibration import OperatingPoint
from offramp.costs import describe_environment, model_costs
from offramp.errors import OfframpError
from offramp.runs import RunFolder
from offramp.runtime import BenchResult, bench, latency_table

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

# The targets of the project: speed-up in time over speed-up in MACs, and time without exits.
EFFICIENCY = {1: 0.85, 8: 0.9, 64: 0.9}
NO_EXIT_OVERHEAD = 1.02


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = RunFolder(arguments.run).check()
    model = run.model.eval()
    images = run.images(arguments.split, arguments.images)
    sizes = [int(size) for size in arguments.batch.split(",")]
    costs = model_costs(model)
    results = {}
    for path in sorted((run.path / "points").glob("*.json")):
        if arguments.point and path.stem not in arguments.point:
            continue
        point = OperatingPoint.load(path)
        results[path.stem] = bench(
            model, point, images, sizes, rounds=arguments.rounds, costs=costs
        )
        show(path.stem, results[path.stem])
    if not results:
        raise OfframpError(f"{run.path}/points: no such operating point (run `offramp calibrate`)")
    tables = latency_table(model, images, sizes, repeats=arguments.rounds)
    return {
        "benchmark": "compaction",
        "command": "python benchmarks/compaction.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "model": model.config.backbone,
        "data": {"name": run.data.name, "split": arguments.split, "images": len(images)},
        "macs": costs.model_dump(mode="json"),
        "latency": {str(size): table.model_dump(mode="json") for size, table in tables.items()},
        "points": {name: result.model_dump(mode="json") for name, result in results.items()},
    }


def show(name: str, result: BenchResult) -> None:
    for row in result.batches:
        goal = EFFICIENCY.get(row.batch_size)
        kept = "" if goal is None else ("≥" if row.efficiency >= goal else "<") + f" {goal}"
        static = "≤" if row.no_exit_overhead <= NO_EXIT_OVERHEAD else ">"
        print(
            f"{name}  batch {row.batch_size:>3}  {row.full_ms:.3f} → {row.dynamic_ms:.3f} ms  "
            f"layers {row.speedup_layers:.2f}×  MACs {row.speedup_macs:.2f}×  "
            f"time {row.speedup_time:.2f}×  efficiency {row.efficiency:.3f} {kept}  "
            f"stream {row.speedup_stream:.2f}×  "
            f"no-exit overhead {row.no_exit_overhead:.3f} {static} {NO_EXIT_OVERHEAD}",
            flush=True,
        )


if __name__ == "__main__":
    parser = parser_for(__doc__, "compaction")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--point", action="append", help="name of a point (repeat; default: all)")
    parser.add_argument("--batch", default="1,8,64", help="batch sizes (default: 1,8,64)")
    parser.add_argument("--images", type=int, default=256, help="real images (default: 256)")
    parser.add_argument("--split", default="test", help="where they come from (default: test)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default: 7)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's)")
    carry_out(parser, main)
