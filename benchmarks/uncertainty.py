"""Is the right class in its set as often as promised, and is a mixture's confidence honest?

    python benchmarks/uncertainty.py runs/NAME/tradeoffs/1 runs/NAME/tradeoffs/2

Every run has gated heads. Two policies answer at equal cost: the gates under the rule they were
taught for (at one half), and thresholds on the confidence of the same heads, chosen on the
calibration split to cost what the gates cost there. Every draw calibrates prediction sets on one
half of the test split, which chose nothing before, and looks at the other. ``by exit`` is judged
among those who leave at each exit, ``alone`` by every exit for everybody (with LAC). Scores are of
the whole test split.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.calibration import Records, calibrate
from offramp.calibration.front import measure
from offramp.calibration.replay import replay
from offramp.costs import describe_environment
from offramp.policies import Policy, policy_from_config
from offramp.policies.jei_dnn import Gated
from offramp.policies.stopping import Stopping
from offramp.runs import RunFolder
from offramp.uncertainty import Answers, Coverage, coverage, exit_answers, mixture_answers, scores
from offramp.uncertainty.conformal import By, calibrate_sets
from offramp.uncertainty.conformal_scores import METHODS, Method

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

ALPHAS = (0.1, 0.05)
LEAST = 0.01  # share of leavers from which an exit's coverage is reported
WAYS: tuple[By, ...] = ("mixture", "exit")


def policies(run: RunFolder) -> dict[str, tuple[Policy, tuple[int, ...]]]:
    """Gates, and confidence thresholds that cost the same on the calibration split."""
    records, costs = run.records("calibration", progress=False), run.costs
    active = tuple(range(records.num_exits - 1))
    turns = run.config.recipe.model_dump()["turns"]
    family = Stopping if turns["targets"] == "regret" else Gated
    gates = family.rule(records.num_exits)
    cost = measure(replay(gates, records, active), records, costs, active).cost
    front = calibrate(records, policy="confidence", max_cost=cost, costs=costs).front
    nearest = min(front, key=lambda setting: abs(setting.cost_share - cost))
    return {
        f"{gates.name} gates": (gates, active),
        "confidence": (policy_from_config(nearest.policy), nearest.active),
    }


def half(answers: Answers, seed: int) -> tuple[Answers, Answers]:
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(seed))
    middle = len(order) // 2
    return answers.part(order[:middle]), answers.part(order[middle:])


def draws(
    answers: Answers, count: int, ways: tuple[By, ...], methods: Sequence[Method] = tuple(METHODS)
) -> dict[str, Any]:
    """Coverage and size over resampled halves, by level, method and way."""
    found: dict[str, list[Coverage]] = {}
    for seed in range(count):
        fit, rest = half(answers, seed)
        for alpha in ALPHAS:
            for method in methods:
                for by in ways:
                    sets = calibrate_sets(fit, alpha=alpha, method=method, by=by)
                    found.setdefault(f"{1 - alpha:g} {method} {by}", []).append(
                        coverage(sets, rest)
                    )
    return {name: _summary(rows) for name, rows in found.items()}


def _summary(rows: list[Coverage]) -> dict[str, Any]:
    share = np.mean([row.exit_share for row in rows], axis=0)
    held = np.array([row.exit_coverage for row in rows], dtype=float)
    size = np.array([row.exit_size for row in rows], dtype=float)
    often = [k for k in range(len(share)) if share[k] >= LEAST]
    covered = [row.coverage for row in rows]
    return {
        "coverage": float(np.mean(covered)),
        "coverage_std": float(np.std(covered)),
        "size": float(np.mean([row.size for row in rows])),
        "empty": float(np.mean([row.empty for row in rows])),
        "exits": {
            str(k): {
                "share": float(share[k]),
                "coverage": float(np.nanmean(held[:, k])),
                "size": float(np.nanmean(size[:, k])),
            }
            for k in often
        },
    }


def one_run(run: RunFolder, count: int) -> dict[str, Any]:
    test = run.records("test", progress=False)
    chosen = policies(run)
    return {
        "run": str(run.path),
        "samples": len(test),
        "exit_names": test.meta.exit_names,
        "policies": {name: _one_policy(run, *pair, test, count) for name, pair in chosen.items()},
        "alone": [
            {
                "scores": scores(exit_answers(test, k)).model_dump(),
                "sets": draws(exit_answers(test, k), count, ("mixture",), ("lac",)),
            }
            for k in range(test.num_exits)
        ],
    }


def _one_policy(
    run: RunFolder,
    policy: Policy,
    active: tuple[int, ...],
    test: Records,
    count: int,
) -> dict[str, Any]:
    answers = mixture_answers(policy, test, active)
    found = measure(replay(policy, test, active), test, run.costs, active)
    return {
        "policy": policy.to_config(),
        "cost": found.cost,
        "exit_share": list(found.exit_share),
        "scores": scores(answers).model_dump(),
        "sets": draws(answers, count, WAYS),
    }


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    rows = [one_run(RunFolder(path).check(), arguments.draws) for path in arguments.runs]
    return {
        "benchmark": "uncertainty",
        "command": "python benchmarks/uncertainty.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "draws": arguments.draws,
        "seconds": time.perf_counter() - start,
        "runs": rows,
    }


def show(found: dict[str, Any]) -> None:
    for run in found["runs"]:
        print(run["run"])
        for name, row in run["policies"].items():
            s = row["scores"]
            print(
                f"  {name:<11} cost {row['cost']:.3f}  accuracy {s['accuracy']:.2f}  ECE "
                f"{100 * s['ece']:.2f}  adaptive {100 * s['adaptive_ece']:.2f}  NLL {s['nll']:.3f}"
            )
            for way, sets in row["sets"].items():
                exits = [100 * e["coverage"] for e in sets["exits"].values()]
                span = f"{min(exits):.1f} … {max(exits):.1f}"
                print(
                    f"    {way:<18} covered {100 * sets['coverage']:.2f} ± "
                    f"{100 * sets['coverage_std']:.2f}  size {sets['size']:.2f}  by exit {span}"
                )
    print(f"{found['draws']} draws in {found['seconds']:.0f} s")


if __name__ == "__main__":
    parser = parser_for(__doc__, "uncertainty")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with gated heads")
    parser.add_argument("--draws", type=int, default=100, help="default: 100")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    carry_out(parser, main, show)
