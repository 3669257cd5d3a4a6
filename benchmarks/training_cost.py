"""What a recipe costs to train on this machine: median step time of every stage, times its steps.

    python benchmarks/training_cost.py recipes/A.yaml recipes/B.yaml

The stages of all recipes take turns step by step, so that a slow moment of the machine falls on
all of them alike. Steps of a stage's first and of its last epoch are timed, as some get cheaper.
Weights are random: they do not change the time.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from offramp.costs import describe_environment
from offramp.data import Batch
from offramp.runs import open_data
from offramp.training.context import LoopOptions
from offramp.training.loop import Trainer
from offramp.training.metrics import MetricsLog
from offramp.training.run_config import RunConfig, load_run_config
from offramp.training.stage_run import StageRun

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

WARMUP = 3


def stage_runs(config: RunConfig, folder: Path) -> list[StageRun]:
    """Every stage of a recipe on a model of its own, ready to step."""
    data, runs = open_data(config), []
    options = LoopOptions(precision=config.precision, device=config.device, progress=False)
    for index, stage in enumerate(config.recipe.stages(config.build(data))):
        if stage.settings.epochs == 0:
            continue
        model = config.build(data)
        trainer = Trainer(model, config.recipe, data, folder, options)
        run = StageRun(trainer.context, index, stage, MetricsLog(folder, None))
        run.prepare()
        runs.append(run)
    return runs


def timed(run: StageRun, batch: Batch, epoch: int, number: int) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    run.step(batch, epoch, number)
    return time.perf_counter() - start


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    configs = {
        path: load_run_config(path, ["model.pretrained=false"]) for path in arguments.recipes
    }
    with TemporaryDirectory() as temporary:
        runs = {path: stage_runs(config, Path(temporary)) for path, config in configs.items()}
        contenders = [run for stages in runs.values() for run in stages]
        batches = [run.batches(0, 0) for run in contenders]
        times: list[list[tuple[float, float]]] = [[] for _ in contenders]
        for number in range(WARMUP + arguments.steps):
            for k, run in enumerate(contenders):
                batch, last = next(batches[k]), run.stage.settings.epochs - 1
                times[k].append((timed(run, batch, 0, number), timed(run, batch, last, number)))
    seconds = {
        id(run): [median(column) for column in zip(*taken[WARMUP:], strict=True)]
        for run, taken in zip(contenders, times, strict=True)
    }
    return {
        "benchmark": "training_cost",
        "command": "python benchmarks/training_cost.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "recipes": {
            path.stem: {
                "name": configs[path].name,
                "stages": [
                    {
                        "name": run.stage.name,
                        "steps": run.total,
                        "batch_size": run.stage.settings.batch_size,
                        "seconds_per_step": seconds[id(run)],
                    }
                    for run in stages
                ],
                "minutes": sum(run.total * fmean(seconds[id(run)]) for run in stages) / 60,
            }
            for path, stages in runs.items()
        },
    }


def show(found: dict[str, Any]) -> None:
    for name, recipe in found["recipes"].items():
        print(f"{name}: {recipe['minutes']:.1f} minutes")


if __name__ == "__main__":
    parser = parser_for(__doc__, "training_cost")
    parser.add_argument("recipes", nargs="+", type=Path, help="recipe files")
    parser.add_argument("--steps", type=int, default=15, help="timed steps per stage (default: 15)")
    carry_out(parser, main, show)
