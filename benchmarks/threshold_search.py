"""What a threshold per exit brings over one shared threshold, and how long fronts take.

    python benchmarks/threshold_search.py runs/NAME --engine openvino

Per-exit settings are chosen on the calibration split and measured on the test split. ``shared`` is
one confidence threshold for all exits, all of them on; where costs are compared at equal loss it is
swept on the test split itself, which is kind to it. Fronts are timed on made logits of 50,000
samples, 12 exits and 100 classes, on one thread, from records in memory to the operating point.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from offramp.calibration import OperatingPoint, Records, RecordsMeta, block_costs, calibrate
from offramp.calibration.front import Measure, measure
from offramp.calibration.replay import replay
from offramp.costs import CostTable, describe_environment
from offramp.policies import Confidence, policy_from_config
from offramp.runs import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

DROPS = (0.25, 0.5, 1.0, 2.0, 4.0)
THRESHOLDS = np.linspace(0.01, 0.999, 200)
SEARCHES = ("coordinate", "dynamic")
SIZE = (50_000, 12, 100)

Curve = list[tuple[float, float]]
"""Points lost and cost share, cheapest first."""


def shared(records: Records, costs: CostTable) -> list[tuple[float, Measure]]:
    """Every shared threshold on some records."""
    found = []
    for threshold in THRESHOLDS.tolist():
        decisions = replay(Confidence.shared(threshold, records.num_exits), records)
        active = range(records.num_exits - 1)
        found.append((threshold, measure(decisions, records, costs, active)))
    return found


def lost(found: Measure, records: Records) -> float:
    return 100 * (records.accuracy[-1] - found.accuracy)


def at_equal_drop(curve: Curve, drop: float) -> float | None:
    """Least cost on the straight lines between points of a curve at a loss of ``drop`` points."""
    best: Curve = []
    for cost, loss in sorted((cost, loss) for loss, cost in curve):
        if not best or loss < best[-1][0]:
            best.append((loss, cost))
    losses = [loss for loss, _ in reversed(best)]
    costs = [cost for _, cost in reversed(best)]
    if not losses[0] <= drop <= losses[-1]:
        return None
    return float(np.interp(drop, losses, costs))


def compare(calibration: Records, test: Records, costs: CostTable) -> dict[str, Any]:
    """Cost at equal loss, and what a target chosen on calibration samples gives on others."""
    curves: dict[str, Curve] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for search in SEARCHES:
        points = {
            drop: calibrate(calibration, max_drop=drop, costs=costs, search=search)
            for drop in DROPS
        }
        curves[search] = [_tested(setting, test, costs) for setting in points[DROPS[0]].front]
        chosen[search] = {f"{d:g}": _row(_tested(p, test, costs)) for d, p in points.items()}
    here, there = shared(calibration, costs), shared(test, costs)
    curves["shared"] = [(lost(found, test), found.cost) for _, found in there]
    chosen["shared"] = {}
    for drop in DROPS:
        kept = [i for i, (_, found) in enumerate(here) if lost(found, calibration) <= drop]
        best = min(kept, key=lambda i: here[i][1].cost)
        chosen["shared"][f"{drop:g}"] = _row(curves["shared"][best])
    equal = {
        f"{drop:g}": {name: at_equal_drop(curve, drop) for name, curve in curves.items()}
        for drop in DROPS
    }
    return {"at_equal_drop": equal, "chosen_for_drop": chosen, "curves": curves}


def _tested(point: Any, test: Records, costs: CostTable) -> tuple[float, float]:
    """Points lost and cost of a setting on the test split."""
    decisions = replay(policy_from_config(point.policy), test, point.active)
    found = measure(decisions, test, costs, point.active)
    return lost(found, test), found.cost


def _row(pair: tuple[float, float]) -> dict[str, float]:
    return {"drop": pair[0], "cost": pair[1]}


def made(count: int, exits: int, classes: int) -> Records:
    """Exits that grow surer and better with depth."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    ease = 1 - 0.75 * torch.rand(count, generator=generator)
    common = torch.randn(count, classes, generator=generator)
    logits = torch.empty(count, exits, classes)
    for k in range(exits):
        logits[:, k] = 0.8 * common + 0.6 * torch.randn(count, classes, generator=generator)
        logits[torch.arange(count), k, labels] += (4 + 6 * (k + 1) / exits) * ease
    meta = RecordsMeta(
        fingerprint="made",
        dataset="made",
        split="calibration",
        exit_names=[f"exit {k}" for k in range(exits)],
        positions=list(range(1, exits)),
        blocks=exits,
        standalone=[True] * exits,
    )
    return Records.from_logits(logits, labels, meta=meta)


def timings(policies: list[str], repeats: int) -> dict[str, Any]:
    """Seconds from records to an operating point with its whole front."""
    records, found = made(*SIZE), {}
    costs = CostTable(unit="MACs", body=(100.0,) * SIZE[1], head=(3.0,) * SIZE[1], full=1203.0)
    for policy in policies:
        wall, cpu = [], []
        point: OperatingPoint | None = None
        for _ in range(repeats):
            begun, used = time.perf_counter(), time.process_time()
            point = calibrate(records, policy=policy, max_drop=1.0, costs=costs)
            wall.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - used)
        size = len(point.front) if point else 0
        found[policy] = {"seconds": median(wall), "cpu_seconds": median(cpu), "front": size}
        print(f"{policy:<18} {median(wall):.2f} s, {median(cpu):.2f} s of one core")
    return found


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    run = RunFolder(arguments.run).check()
    options = {"engine": arguments.engine, "precision": arguments.precision}
    calibration, test = run.records("calibration", **options), run.records("test", **options)
    costs = calibration.meta.costs or block_costs(calibration)
    found = compare(calibration, test, costs)
    for drop, by_name in found["at_equal_drop"].items():
        shown = {n: "–" if v is None else f"{v:.4f}" for n, v in by_name.items()}
        print(f"at {drop} points lost: {shown}")
    calibrate(calibration, max_drop=1.0)  # imports
    return {
        "benchmark": "threshold_search",
        "command": "python benchmarks/threshold_search.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "run": run.path.name,
        "engine": calibration.meta.engine,
        "precision": calibration.meta.precision,
        "unit": costs.unit,
        "samples": {"calibration": len(calibration), "test": len(test)},
        **found,
        "timing": {
            "samples": SIZE[0],
            "exits": SIZE[1],
            "classes": SIZE[2],
            "threads": 1,
            "policies": timings(arguments.policies.split(","), arguments.repeats),
        },
    }


if __name__ == "__main__":
    parser = parser_for(__doc__, "threshold_search")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--engine", default="torch", help="whose records (default: torch)")
    parser.add_argument("--precision", help="the engine's default when omitted")
    parser.add_argument(
        "--policies",
        default="confidence,entropy,margin,patience,pcee,best_of,voting,boosted,"
        "ztw_geometric,ztw_arithmetic",
        help="what is timed, separated by commas",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs per policy (default: 3)")
    carry_out(parser, main)
