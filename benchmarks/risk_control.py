"""Are proved risks kept, and what does the proof cost? Over many resampled splits of real records.

    python benchmarks/risk_control.py runs/NAME --engine openvino

Calibration and test records are pooled. Every draw takes as many samples as the calibration split
had, makes a path on one part of them, proves it on the other, and judges the choice on all samples
that were not drawn. ``hindsight`` is the cheapest setting of the same path that keeps the bound
there: what somebody would choose who knew.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.calibration import Records, block_costs
from offramp.calibration.risk.losses import loss_named
from offramp.calibration.risk.methods import METHODS, Level
from offramp.calibration.risk.paths import PATHS, Quest, Step, decide_along
from offramp.calibration.splits import cut, hash_order
from offramp.costs import CostTable, describe_environment
from offramp.errors import OfframpError
from offramp.policies import POLICIES
from offramp.runs import RunFolder

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

Floats = NDArray[np.float64]


def pooled(first: Records, second: Records) -> Records:
    """Both as one set of samples, named anew."""
    count = len(first) + len(second)
    return Records(
        labels=torch.cat([first.labels, second.labels]),
        ids=torch.arange(count),
        scalars={n: torch.cat([v, second.scalars[n]]) for n, v in first.scalars.items()},
        signals={n: torch.cat([v, second.signals[n]]) for n, v in first.signals.items()},
        meta=first.meta,
        logits=torch.cat([first.logits, second.logits]),
    )


def drawn(pool: Records, count: int, seed: int) -> tuple[Records, Records]:
    """``count`` samples as if they had just been collected, and all others."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    chosen, rest = pool.part(order[:count]), pool.part(order[count:])
    chosen.ids = torch.arange(count)  # parts are cut by id: another draw, other parts
    return chosen, rest


class Judge:
    """A path on held-out samples: what every setting risks and costs there."""

    def __init__(self, path: list[Step], quest: Quest, records: Records) -> None:
        decided = decide_along(path, records)
        self.risk: Floats = quest.loss.along(decided, records).mean(axis=0)
        self.cost = np.array(
            [
                quest.costs.mean_cost(decisions.exit_share, step.active) / quest.costs.full
                for decisions, step in zip(decided, path, strict=True)
            ]
        )

    def hindsight(self, risk: float) -> float:
        return float(self.cost[self.risk <= risk].min())


def one_draw(quest: Quest, level: Level, pool: Records, count: int, seed: int) -> dict[str, Any]:
    """Every method along every path: realised risk and cost, and the path's best with hindsight."""
    records, rest = drawn(pool, count, seed)
    found: dict[str, Any] = {}
    for name in PATHS.names():
        maker = PATHS.get(name)()
        parts = cut(records, {**maker.shares, "proof": 1 - sum(maker.shares.values())})
        path, proof = maker.make(quest, parts), parts["proof"]
        losses = quest.loss.along(decide_along(path, proof), proof)[hash_order(proof).numpy()]
        judge = Judge(path, quest, rest)
        best = judge.hindsight(level.risk)
        for method in METHODS.names():
            chosen = METHODS.get(method)().choose(losses, level)
            if chosen is None:
                raise OfframpError(f"{method} proves nothing on {len(proof)} samples")
            found[f"{name} {method}"] = (judge.risk[chosen], judge.cost[chosen], best, len(proof))
    return found


def summary(rows: list[dict[str, Any]], level: Level) -> dict[str, Any]:
    """Per path and method, over all draws."""
    best_shared = np.mean([row["shared ltt"][2] for row in rows])
    result = {}
    for name in rows[0]:
        risk, cost, best, proof = np.array([row[name] for row in rows]).T
        result[name] = {
            "proof_samples": int(proof[0]),
            "broken": float((risk > level.risk).mean()),
            "risk_mean": float(risk.mean()),
            "risk_quantiles": np.quantile(risk, [0.05, 0.5, 0.95]).tolist(),
            "cost": float(cost.mean()),
            "hindsight_cost": float(best.mean()),
            "over_hindsight": float((cost / best).mean() - 1),
            "over_shared_hindsight": float(cost.mean() / best_shared - 1),
            "risks": np.round(risk, 5).tolist(),
            "costs": np.round(cost, 4).tolist(),
        }
    return result


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    run = RunFolder(arguments.run).check()
    options = {"engine": arguments.engine, "precision": arguments.precision}
    calibration, test = run.records("calibration", **options), run.records("test", **options)
    pool, count = pooled(calibration, test), arguments.samples or len(calibration)
    if not 0 < count < len(pool):
        raise OfframpError(f"--samples {count}, but there are {len(pool)} in all")
    costs: CostTable = calibration.meta.costs or block_costs(calibration)
    loss = loss_named(arguments.risk_kind)
    level = Level(arguments.risk, arguments.delta, loss.bound, loss.binary)
    family = POLICIES.get(arguments.policy)
    quest = Quest(family, {}, loss, level.risk, costs, calibration.meta)
    start = time.perf_counter()
    rows = [one_draw(quest, level, pool, count, seed) for seed in range(arguments.draws)]
    return {
        "benchmark": "risk_control",
        "command": "python benchmarks/risk_control.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "run": run.path.name,
        "engine": calibration.meta.engine,
        "precision": calibration.meta.precision,
        "policy": arguments.policy,
        "risk_kind": loss.name,
        "risk": level.risk,
        "delta": level.delta,
        "unit": costs.unit,
        "pool": len(pool),
        "samples": count,
        "draws": len(rows),
        "seconds": time.perf_counter() - start,
        "results": summary(rows, level),
    }


def show(found: dict[str, Any]) -> None:
    for name, row in found["results"].items():
        print(
            f"{name:<16} broken {100 * row['broken']:5.1f} %  risk {100 * row['risk_mean']:.2f} %  "
            f"cost {row['cost']:.4f}  over hindsight {100 * row['over_hindsight']:+.1f} %  "
            f"over shared hindsight {100 * row['over_shared_hindsight']:+.1f} %"
        )
    print(f"{found['draws']} draws of {found['samples']} in {found['seconds']:.0f} s")


if __name__ == "__main__":
    parser = parser_for(__doc__, "risk_control")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--engine", default="torch", help="whose records (default: torch)")
    parser.add_argument("--precision", help="the engine's default when omitted")
    parser.add_argument("--policy", default="confidence", help="default: confidence")
    parser.add_argument("--risk", type=float, default=0.01, help="ε (default: 0.01)")
    parser.add_argument("--delta", type=float, default=0.1, help="δ (default: 0.1)")
    parser.add_argument("--risk-kind", default="consistency", help="default: consistency")
    parser.add_argument("--draws", type=int, default=200, help="default: 200")
    parser.add_argument("--samples", type=int, help="per draw; as the calibration split has")
    carry_out(parser, main, show)
