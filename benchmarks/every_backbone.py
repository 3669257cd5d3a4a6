"""Every backbone of the field down the whole road, by the command line alone.

    python benchmarks/every_backbone.py [--only NAME] [--threads 2]

For each model: ``offramp train`` (from nothing, a short run), ``calibrate``, ``eval``, ``bench``,
each a process of its own. Results are written after every model; one that is there already, from
the same recipe and settings, is skipped, so a run that was cut off goes on where it stood. Let
nothing else run on the machine meanwhile; ``--quick`` only tries the road on a few images.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from offramp.chains import FAMILIES
from offramp.costs import describe_environment
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.runs import RunFolder
from offramp.training.run_config import RunConfig, load_run_config

sys.path.insert(0, str(Path(__file__).parent))
from script import commit

RECIPES = Path(__file__).parents[1] / "recipes"
MODELS = {
    "Swin-T": "swin_tiny_digits_grid_32_lgvit",
    "LeViT-128S": "levit_128s_digits_grid_64_lgvit",
    "CrossViT-tiny": "crossvit_tiny_digits_grid_60_lgvit",
    "ViL-tiny": "vil_tiny_digits_grid_32_lgvit",
    "Shuffle-tiny": "shuffle_tiny_digits_grid_96_lgvit",
    "T2T-ViT-7": "t2t_vit_7_digits_grid_64_lgvit",
    "MobileViT-S": "mobilevit_s_digits_grid_64_joint_linear",
    "EfficientNet-B0": "efficientnet_b0_digits_grid_64_joint_linear",
    "CCT-7": "cct_7_digits_grid_32_lgvit",
}
POINT = "promised"
QUICK_IMAGES = 64
Json = dict[str, Any]


def offramp(*words: str, threads: int) -> tuple[Json, float]:
    """Run one command with ``--json``; what it printed, and its seconds from start to end."""
    command = [sys.executable, "-m", "offramp.cli.main", *words, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise OfframpError(f"offramp {' '.join(words)} failed (its message stands above)")
    return json.loads(done.stdout), time.monotonic() - start


def road(recipe: Path, settings: Json, overrides: list[str], runs: Path) -> Json:
    """Train, calibrate, evaluate and time one recipe; everything the table shows of it.

    A run's folder carries the digest of its recipe, so another recipe never finds its weights.
    """
    config = load_run_config(recipe, overrides)
    folder = runs / digest(config)
    run = folder / config.name
    bench = [part for key, value in settings["bench"].items() for part in (f"--{key}", str(value))]
    commands = {
        "train": ["train", str(recipe), *overrides, "--runs", str(folder), "--resume"],
        "calibrate": ["calibrate", str(run), "--name", POINT],
        "eval": ["eval", str(run)],
        "bench": ["bench", str(run), "--point", POINT, "--threads", str(settings["threads"])],
    }
    commands["calibrate"] += ["--max-drop", str(settings["max_drop"])]
    commands["bench"] += bench
    said, seconds = {}, {}
    for step, words in commands.items():
        said[step], seconds[step] = offramp(*words, threads=settings["threads"])
    timed = said["bench"]["results"][0]
    return {
        "digest": digest(config),
        "settings": settings,
        "commit": commit(),
        "environment": timed["environment"],
        "seconds": {step: round(took, 1) for step, took in seconds.items()},
        "training_seconds": said["train"]["last"]["seconds"],
        **facts(RunFolder(run)),
        **accuracies(said["eval"]),
        "batches": {str(found["batch_size"]): found for found in timed["batches"]},
    }


def facts(run: RunFolder) -> Json:
    """What the model is, and what always giving the commonest answer would reach."""
    model, config = run.model, run.config
    labels = run.data.split("test").labels
    family = next(n for n in FAMILIES.names() if FAMILIES.get(n).matches(model.backbone))
    return {
        "backbone": config.model.backbone,
        "backbone_args": config.model.backbone_args,
        "family": family,
        "recipe": config.dump()["recipe"],
        "precision": config.precision,
        "image_size": list(model.chain.image_size),
        "parameters": sum(p.numel() for p in model.backbone.parameters()),
        "exit_parameters": sum(p.numel() for p in model.exits.parameters()),
        "macs": round(run.costs.full),
        "depth": len(model.chain),
        "heads": [spec.model_dump(mode="json") for spec in model.config.exits],
        "commonest": 100 * labels.bincount().max().item() / len(labels),
    }


def accuracies(evaluation: Json) -> Json:
    """The final exit, every exit, and the point that keeps the promise, on the test split."""
    found = evaluation["points"][POINT]
    keys = ("accuracy", "drop", "drop_interval", "kept", "exit_share")
    return {
        "dataset": evaluation["dataset"],
        "samples": evaluation["samples"],
        "full_accuracy": found["full_accuracy"],
        "exits": evaluation["exits"],
        "point": {key: found[key] for key in keys}
        | {"layers": found["speedup_layers"], "macs": found["speedup_macs"]},
    }


def digest(config: RunConfig) -> str:
    """A short name for a recipe as resolved."""
    text = json.dumps(config.dump(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def quick(recipe: Path) -> list[str]:
    """Overrides that leave one epoch of a few images of every stage."""
    stages = load_run_config(recipe).dump()["recipe"]
    used = [name for name, s in stages.items() if isinstance(s, dict) and s.get("epochs")]
    found = [f"data.limit={QUICK_IMAGES}"]
    for name in used:
        found += [f"recipe.{name}.epochs=1", f"recipe.{name}.batch_size=16"]
    return found


def main(arguments: argparse.Namespace) -> list[str]:
    """Go through the models; names of those that failed."""
    results: Path = arguments.results_file
    document: Json = read_json(results) if results.is_file() else {"models": {}}
    settings = {
        "max_drop": arguments.max_drop,
        "threads": arguments.threads,
        "bench": {
            "batch": arguments.batch,
            "images": arguments.images,
            "rounds": arguments.rounds,
        },
    }
    failed = []
    for name in arguments.only or MODELS:
        recipe = RECIPES / f"{MODELS[name]}.yaml"
        overrides = quick(recipe) if arguments.quick else []
        old = document["models"].get(name)
        wanted = digest(load_run_config(recipe, overrides))
        if old and (old["digest"], old["settings"]) == (wanted, settings):
            print(f"{name}: there already", flush=True)
            continue
        try:
            found = road(recipe, settings, overrides, arguments.runs)
        except OfframpError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        models = document["models"] | {name: found}
        document = {
            "benchmark": "every_backbone",
            "command": "python benchmarks/every_backbone.py " + " ".join(sys.argv[1:]),
            "commit": commit(),
            "environment": describe_environment(),
            "models": {key: models[key] for key in MODELS if key in models},
        }
        write_json(results, document)
        print(line(name, found), flush=True)
    return failed


def line(name: str, found: Json) -> str:
    point, batches = found["point"], found["batches"].values()
    times = "  ".join(f"batch {b['batch_size']} {b['speedup_time']:.2f}×" for b in batches)
    return (
        f"{name}  {sum(found['seconds'].values()):.0f} s  {found['full_accuracy']:.2f} % → "
        f"{point['accuracy']:.2f} %  layers {point['layers']:.2f}×  MACs {point['macs']:.2f}×  "
        f"time: {times}"
    )


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=list(MODELS), help="(repeat)")
    parser.add_argument("--threads", type=int, default=2, help="of every command (default: 2)")
    parser.add_argument("--max-drop", type=float, default=1.0, help="promised (default: 1 point)")
    parser.add_argument("--batch", default="1,32", help="batch sizes timed (default: 1,32)")
    parser.add_argument("--images", type=int, default=64, help="timed per round (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument("--quick", action="store_true", help="few images; results stay in --runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/every_backbone"))
    parser.add_argument("--results-file", type=Path)
    return parser


if __name__ == "__main__":
    chosen = options().parse_args()
    if chosen.results_file is None:
        place = chosen.runs / "quick.json" if chosen.quick else None
        chosen.results_file = place or Path("benchmarks/results/every_backbone.json")
    left = main(chosen)
    if left:
        sys.exit(f"failed: {', '.join(left)}")
