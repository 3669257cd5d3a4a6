"""Counting people early: the error of every exit, and what stopping early saves at equal error.

    python benchmarks/crowd_counting.py --pretrained PATH [--runs runs/crowd_counting]

Trains the three crowd-counting recipes (linear, MLP-EE and ViT-EE exits on DeiT-tiny, ShanghaiTech
part B), then, by the command line alone, chooses a point of policy ``settled`` for every allowed
rise of the mean absolute error per crop, and evaluates it on the test photos, whose crops add up.
A run that is there already is not trained again. Writes benchmarks/results/crowd_counting.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from script import commit, told_without

from offramp.costs import describe_environment
from offramp.errors import OfframpError
from offramp.files import write_json

RECIPES = Path(__file__).parents[1] / "recipes"
OUT = Path(__file__).parent / "results" / "crowd_counting.json"
HEADS = ("linear", "mlp_ee", "vit_ee")
RISES = (0.0, 0.1, 0.25)  # people per crop, above the full model's error


def offramp(*words: object) -> Any:
    """What a command says with --json."""
    command = [sys.executable, "-m", "offramp.cli.main", *map(str, words), "--json"]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode:
        raise OfframpError(f"offramp {' '.join(map(str, words))}: {answer.stderr.strip()}")
    return json.loads(answer.stdout)


def one(head: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one kind of exit."""
    run = arguments.runs / head
    recipe = RECIPES / f"deit_tiny_shanghaitech_b_96_joint_{head}.yaml"
    if not (run / "config.json").is_file():
        given = [f"model.pretrained={arguments.pretrained}", f"name={head}"]
        if arguments.limit:
            given.append(f"data.limit={arguments.limit}")
        offramp("train", recipe, "--runs", arguments.runs, "--resume", *given)
    for rise in RISES:
        offramp(
            *("calibrate", run, "--policy", "settled"),
            *("--max-drop", rise, "--name", f"rise-{rise:g}"),
        )
    found = offramp("eval", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    keys = ("samples", "exits", "points")
    seconds = json.loads(lines[-1])["seconds"] if lines else None
    return {key: found[key] for key in keys} | {"training_seconds": seconds}


def main(arguments: argparse.Namespace) -> None:
    heads = {head: one(head, arguments) for head in arguments.only or HEADS}
    found = {
        "benchmark": "crowd_counting",
        "command": told_without(sys.argv, arguments.pretrained),
        "commit": commit(),
        "environment": describe_environment(),
        "heads": heads,
    }
    write_json(arguments.out, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretrained", required=True, help="ImageNet weights of DeiT-tiny")
    parser.add_argument("--only", action="append", choices=HEADS, help="(repeat)")
    parser.add_argument("--limit", type=int, help="photos per split, to try the road")
    parser.add_argument("--runs", type=Path, default=Path("runs/crowd_counting"))
    parser.add_argument("--out", type=Path, default=OUT)
    try:
        main(parser.parse_args())
    except OfframpError as error:
        sys.exit(str(error))
