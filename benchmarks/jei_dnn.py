"""Do learned gates beat thresholds on the same heads? Accuracy at equal MACs, several seeds.

    python benchmarks/jei_dnn.py runs/SEED0 runs/SEED1 runs/SEED2 --plain runs/PLAIN0 …

Each run is a sweep of recipe ``jei_dnn`` (one model per price in its folder ``tradeoffs``); a plain
run has ungated heads on the same frozen backbone, one per seed. The backbone's features of a split
are computed once for all runs that share it. At every budget, a share of the unmodified model's
MACs, accuracies on the test split are read off curves by straight lines between neighbours:

- ``rule``: the models of the sweep, each under the paper's rule (a hazard of one half);
- ``stopping rule``: the same models, each gate by itself at one half;
- ``gates``, ``stopping``: thresholds on hazards or gates of each model, chosen on the calibration
  split;
- ``confidence``, ``entropy``: thresholds on the same models' heads, chosen on the same split;
- ``plain confidence``: thresholds on the plain run's heads.

Where a curve has several models, the one that is best at that budget on the calibration split
answers.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.calibration import Records, calibrate
from offramp.calibration.front import measure
from offramp.calibration.replay import replay
from offramp.comparison.siblings import record_siblings, trunk
from offramp.costs import describe_environment, model_costs
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import read_json
from offramp.model import MultiExitModel
from offramp.policies import policy_from_config
from offramp.policies.jei_dnn import Gated
from offramp.policies.stopping import Stopping
from offramp.runs import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)
SPLITS = ("calibration", "test")
RULES: dict[str, type[Gated] | type[Stopping]] = {"rule": Gated, "stopping rule": Stopping}
FAMILIES = {
    "gates": "jei_dnn",
    "stopping": "stopping",
    "confidence": "confidence",
    "entropy": "entropy",
}
Curve = list[tuple[float, float]]
"""Cost share and accuracy in percent, cheapest first."""


def models_of(run: RunFolder) -> dict[str, MultiExitModel]:
    """The models of a sweep by price, or a run's one model."""
    front = run.path / "tradeoffs" / "front.json"
    if not front.is_file():
        return {run.path.name: run.model.eval()}
    rows = read_json(front)
    return {
        row["run"]: MultiExitModel.from_pretrained(run.path / "tradeoffs" / row["run"]).eval()
        for row in rows
    }


def curve_of(records: Records, family: str, test: Records, costs: CostTable) -> tuple[Curve, Curve]:
    """A family's front, chosen on the calibration split: there, and on the test split."""
    front = calibrate(records, policy=family, max_cost=2.0, costs=costs).front
    return tuple(
        [_spot(policy_from_config(s.policy), s.active, on, costs) for s in front]
        for on in (records, test)
    )  # type: ignore[return-value]


def _spot(policy: Any, active: Any, records: Records, costs: CostTable) -> tuple[float, float]:
    found = measure(replay(policy, records, active), records, costs, active)
    return found.cost, 100 * found.accuracy


def at(curve: Curve, budget: float) -> float:
    """Accuracy at a cost, on the upper hull of rising points; NaN below the cheapest."""
    rising: Curve = []
    for cost, accuracy in sorted(curve):
        if not rising or accuracy > rising[-1][1]:
            rising.append((cost, accuracy))
    costs, accuracies = zip(*rising, strict=True)
    if budget < costs[0]:
        return float("nan")
    return float(np.interp(budget, costs, accuracies))


def best_at(curves: dict[str, tuple[Curve, Curve]], budget: float) -> tuple[float, str]:
    """Accuracy on the test split of the model that is best on the calibration split."""
    there = {name: at(pair[0], budget) for name, pair in curves.items()}
    known = {name: value for name, value in there.items() if value == value}
    if not known:
        return float("nan"), ""
    name = max(known, key=lambda key: known[key])
    return at(curves[name][1], budget), name


def one_seed(
    models: dict[str, MultiExitModel],
    records: dict[str, dict[str, Records]],
    plain: dict[str, Records] | None,
    budgets: list[float],
) -> dict[str, Any]:
    """Every curve of a seed, and what it gives at each budget."""
    costs = {name: model_costs(model) for name, model in models.items()}
    every = range(next(iter(models.values())).num_exits - 1)
    rules = {
        label: sorted(
            _spot(family.rule(len(every) + 1), tuple(every), records[name]["test"], costs[name])
            for name in models
        )
        for label, family in RULES.items()
    }
    curves = {
        label: {
            name: curve_of(records[name]["calibration"], family, records[name]["test"], costs[name])
            for name in models
        }
        for label, family in FAMILIES.items()
    }
    if plain is not None:
        meta = plain["test"].meta.costs
        assert meta is not None
        pair = curve_of(plain["calibration"], "confidence", plain["test"], meta)
        curves["plain confidence"] = {"plain": pair}
    found: dict[str, Any] = {
        label: {f"{b:g}": at(curve, b) for b in budgets} for label, curve in rules.items()
    }
    chosen: dict[str, dict[str, str]] = {}
    for label, by_model in curves.items():
        best = {f"{b:g}": best_at(by_model, b) for b in budgets}
        found[label] = {budget: value for budget, (value, _) in best.items()}
        chosen[label] = {budget: name for budget, (_, name) in best.items()}
    full = 100 * next(iter(records.values()))["test"].accuracy[-1]
    return {
        "full_accuracy": full,
        "accuracy": found,
        "model": chosen,
        "rules": {
            label: [dict(zip(("cost", "accuracy"), spot, strict=True)) for spot in curve]
            for label, curve in rules.items()
        },
        "models": list(models),
    }


def collected(runs: list[RunFolder]) -> list[dict[str, dict[str, Records]]]:
    """Per run and model, records of both splits; one pass per split and backbone."""
    models = [models_of(run) for run in runs]
    found: list[dict[str, dict[str, Records]]] = [{name: {} for name in group} for group in models]
    places: dict[str, list[tuple[int, str]]] = {}
    for i, group in enumerate(models):
        for name, model in group.items():
            places.setdefault(str(trunk(model)), []).append((i, name))
    for members in places.values():
        for split in SPLITS:
            made = record_siblings(
                [models[i][n] for i, n in members], runs[members[0][0]].data, split
            )
            for (i, name), records in zip(members, made, strict=True):
                found[i][name][split] = records
    return found


def summary(seeds: list[dict[str, Any]], budgets: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the rule's and gates' lead over thresholds."""
    rows: dict[str, Any] = {}
    for label in seeds[0]["accuracy"]:
        values = np.array([[s["accuracy"][label][f"{b:g}"] for b in budgets] for s in seeds])
        rows[label] = {"mean": values.mean(0).tolist(), "std": values.std(0).tolist()}
    for ours in ("rule", "stopping rule", "gates", "stopping"):
        for theirs in ("confidence", "plain confidence"):
            if theirs in rows:
                lead = np.subtract(rows[ours]["mean"], rows[theirs]["mean"])
                rows[f"{ours} over {theirs}"] = {
                    "by_budget": lead.tolist(),
                    "mean": float(np.nanmean(lead)),
                }
    return rows


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    runs = [RunFolder(path).check() for path in arguments.runs]
    plain = [RunFolder(path).check() for path in arguments.plain]
    if plain and len(plain) != len(runs):
        raise OfframpError(f"{len(plain)} plain runs for {len(runs)} runs: give one per seed")
    budgets = [float(budget) for budget in arguments.budgets.split(",")]
    everything = collected([*runs, *plain])
    seeds = []
    for i, run in enumerate(runs):
        other = next(iter(everything[len(runs) + i].values())) if plain else None
        seeds.append(
            {"run": run.path.name, "seed": run.config.seed}
            | one_seed(models_of(run), everything[i], other, budgets)
        )
    return {
        "benchmark": "jei_dnn",
        "command": "python benchmarks/jei_dnn.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "turns": runs[0].config.recipe.model_dump().get("turns"),
        "dataset": runs[0].data.name,
        "backbone": runs[0].model.config.backbone,
        "budgets": budgets,
        "seconds": time.perf_counter() - start,
        "summary": summary(seeds, budgets),
        "seeds": seeds,
    }


def show(found: dict[str, Any]) -> None:
    print("budget".ljust(28), *(f"{budget:8.2f}" for budget in found["budgets"]))
    for label, row in found["summary"].items():
        values = row.get("by_budget") or row["mean"]
        spread = "" if "by_budget" in row else "   ± " + " ".join(f"{s:.2f}" for s in row["std"])
        mean = f"   mean {row['mean']:+.2f}" if "by_budget" in row else ""
        print(label.ljust(28), *(f"{value:8.2f}" for value in values), spread, mean)
    print(f"{len(found['seeds'])} seeds in {found['seconds']:.0f} s")


if __name__ == "__main__":
    parser = parser_for(__doc__, "jei_dnn")
    parser.add_argument("runs", nargs="+", type=Path, help="sweeps of recipe jei_dnn, one per seed")
    parser.add_argument(
        "--plain", nargs="*", type=Path, default=[], help="plain runs, one per seed"
    )
    parser.add_argument(
        "--budgets",
        default=",".join(f"{b:g}" for b in BUDGETS),
        help="shares of the unmodified model's MACs (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    carry_out(parser, main, show)
