"""Fewer tokens, early exits, or both: what each saves in measured time at equal loss.

    python benchmarks/tokens_and_exits.py runs/NAME --reducer tome --option r --strengths 0,1,2,4

Needs a trained run without a reducer whose exits can follow reduced blocks. The committed result is
of LGViT after some training with half of its tokens, taken with all of them:

    offramp train recipes/deit_tiny_cifar100_112_lgvit_evo_vit.yaml name=HALF
    offramp train recipes/deit_tiny_cifar100_112_lgvit_evo_vit.yaml name=ALL model.reducer=null \\
        model.pretrained=runs/HALF exits.pretrained=runs/HALF recipe.end_to_end.epochs=0
    python benchmarks/tokens_and_exits.py runs/ALL --reducer evo_vit --with classifier=class \\
        --option keep --strengths 1,0.8,0.7,0.6

For every allowed loss, on one engine and for each batch size: the quickest strength of the reducer
without exits, the quickest exits without the reducer, and strength and exits chosen together. All
are chosen on the calibration split by time measured on the engine, judged on the test split, and
timed end to end on real test images in turns with the untouched model. Writes
benchmarks/results/tokens_and_exits.json. Let nothing else run on the machine meanwhile.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from offramp.calibration import OperatingPoint, evaluate
from offramp.calibration.batch_time import survivor_sizes
from offramp.chains import chain
from offramp.costs import describe_environment
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import write_json
from offramp.joint_calibration import calibrate_jointly
from offramp.reduced_run import point_records, reduced_run, settled
from offramp.reducers import ReducerSpec
from offramp.runs import RunFolder, calibrate_run
from offramp.runtime import bench, latency_table
from offramp.token_steps import Timed, measure_reducers

sys.path.insert(0, str(Path(__file__).parent))
from script import commit

DROPS = (0.5, 1.0, 2.0)
OUT = Path(__file__).parent / "results" / "tokens_and_exits.json"


class Contest:
    """One run on one engine."""

    def __init__(self, run: RunFolder, specs: list[ReducerSpec], options: argparse.Namespace):
        self.run, self.specs, self.options = run, specs, options
        self.images = run.images("test", options.images)
        self.tables: dict[Path, dict[int, CostTable]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def alone(self, batch: int) -> dict[str, Any]:
        """Strengths of the reducer without any exit: their time, and what they lose."""
        run, options = self.run, self.options
        links = chain(run.model.backbone, image_size=run.model.preprocessing.image_size)
        wanted = [spec for spec in self.specs if settled(run, spec) is not None]
        settings = run.engine_options(options.engine, batch_size=batch)
        timings: list[Timed] = measure_reducers(
            links,
            wanted,
            self.images[:batch],
            engine=options.engine,
            options=settings,
            rounds=options.rounds * 10,
        )[1:]
        rows: list[dict[str, Any]] = []
        for timing in timings:
            variant = reduced_run(run, timing.spec)
            lost = {
                split: 100 * (self.final(run, split) - self.final(variant, split))
                for split in ("calibration", "test")
            }
            assert timing.spec is not None
            rows.append({"reducer": timing.spec.model_dump(), "speedup": 1 / timing.ratio, **lost})
        return {
            f"{drop:g}": max(
                (row for row in rows if row["calibration"] <= drop),
                key=lambda row: row["speedup"],
                default=None,
            )
            for drop in options.drops
        } | {"strengths": rows}

    def final(self, run: RunFolder, split: str) -> float:
        return run.records(split, engine=self.options.engine, progress=False).accuracy[-1]

    def clock(self, batch: int) -> Any:
        """Latency tables of a run at the sizes its survivors come in, measured once."""
        wanted = {size: survivor_sizes(size) for size in self.options.batch}

        def measured(variant: RunFolder) -> dict[int, CostTable]:
            if variant.path not in self.tables:
                self.tables[variant.path] = latency_table(
                    variant.model,
                    self.images,
                    sorted({size for sizes in wanted.values() for size in sizes}),
                    engine=self.options.engine,
                    options=variant.engine_options(self.options.engine),
                    repeats=self.options.rounds * 3,
                )
            return {size: self.tables[variant.path][size] for size in wanted[batch]}

        return measured

    def timed(self, point: OperatingPoint, batch: int) -> dict[str, Any]:
        """What a point loses and takes; one that was chosen twice is timed once."""
        key = f"{batch} {point.reducer} {point.active} {point.policy}"
        if key not in self.rows:
            self.rows[key] = self._timed(point, batch)
        return self.rows[key]

    def _timed(self, point: OperatingPoint, batch: int) -> dict[str, Any]:
        options, variant = self.options, reduced_run(self.run, point.reducer)
        row = bench(
            variant.model,
            point,
            self.images,
            [batch],
            rounds=options.rounds,
            costs=variant.costs,
            engine=options.engine,
            options=variant.engine_options(options.engine, batch_size=batch),
        ).batches[0]
        judged = evaluate(point, point_records(self.run, point, "test", progress=False))
        return {
            "reducer": point.reducer and point.reducer.model_dump(),
            "exits": [point.exit_names[k] for k in point.active],
            "calibration": point.drop,
            "test": judged.drop,
            "speedup": row.speedup_time,
            "macs": row.speedup_macs,
        }

    def at(self, batch: int) -> dict[str, Any]:
        """Everything at one batch size."""
        options, clock = self.options, self.clock(batch)
        found: dict[str, Any] = {"tokens": self.alone(batch), "exits": {}, "both": {}}
        times = clock(self.run)
        for drop in options.drops:
            key, shared = f"{drop:g}", {"engine": options.engine, "progress": False}
            _, point = calibrate_run(
                self.run, max_drop=drop, times=times, name=f"exits-{batch}-{key}", **shared
            )
            found["exits"][key] = self.timed(point, batch)
            _, point = calibrate_jointly(
                self.run,
                self.specs,
                max_drop=drop,
                clock=clock,
                name=f"both-{batch}-{key}",
                **shared,
            )
            found["both"][key] = self.timed(point, batch)
            for name in ("tokens", "exits", "both"):
                row = found[name][key]
                told = row and f"{row['speedup']:.2f}x, loses {row['test']:.2f}"
                print(f"batch {batch}, at most {key}: {name} {told}", file=sys.stderr, flush=True)
        return found


def main(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    run = RunFolder(options.run).check()
    fixed = dict(pair.split("=", 1) for pair in options.given)
    specs = [
        ReducerSpec(name=options.reducer, options={**fixed, options.option: value})
        for value in options.strengths
    ]
    contest = Contest(run, specs, options)
    found = {
        "benchmark": "tokens_and_exits",
        "command": "python benchmarks/tokens_and_exits.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "run": run.path.name,
        "engine": options.engine,
        "samples": len(run.data.split("test")),
        "accuracy": 100 * contest.final(run, "test"),
        "batches": {str(batch): contest.at(batch) for batch in options.batch},
    }
    write_json(options.out, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--reducer", default="tome")
    parser.add_argument("--option", default="r", help="what says how many tokens go")
    parser.add_argument("--with", dest="given", action="append", default=[], help="option=value")
    parser.add_argument("--strengths", type=_numbers, default=(0, 1, 2, 4))
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--batch", type=_numbers, default=(1, 32))
    parser.add_argument("--drops", type=_numbers, default=DROPS)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(int(part) if part.isdigit() else float(part) for part in text.split(","))


if __name__ == "__main__":
    try:
        main(parse())
    except OfframpError as error:
        sys.exit(str(error))
