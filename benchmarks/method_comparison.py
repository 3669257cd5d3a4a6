"""Every way to leave early on one backbone, at equal cost and at equal accuracy.

    python benchmarks/method_comparison.py --pretrained PATH [--seeds 0,1,2] [--only NAME]

Trains the recipes of ``METHODS`` (each from the same fine-tuned run, whose backbone most leave as
it is), then compares them as ``offramp compare`` does. A run that is there already is not trained
again, and one that was cut off is resumed, so the script goes on where it stood. Writes
benchmarks/results/method_comparison.json with the table and plot beside it. ``--limit N`` trains on
N images, to try the road.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from compaction import commit

from offramp.comparison import compare
from offramp.comparison.timing import time_methods
from offramp.errors import OfframpError
from offramp.files import write_json

RECIPES = Path(__file__).parents[1] / "recipes"
OUT = Path(__file__).parent / "results" / "method_comparison.json"
BACKBONE = "finetune"
# method → the policies it is judged by
METHODS: dict[str, tuple[str, ...]] = {
    "frozen_linear": ("confidence", "entropy", "patience", "pcee", "budgeted"),
    "frozen_survivors": ("confidence",),
    "classifier_wise": ("confidence",),
    "classifier_wise_vit_ee": ("confidence",),
    "classifier_wise_cnn_add_ee": ("confidence",),
    "sdn_heads": ("best_of",),
    "deebert": ("entropy",),
    "ztw": ("confidence", "ztw_geometric"),
    "boosted": ("boosted",),
    "joint_linear": ("confidence", "patience"),
    "pabee": ("patience", "confidence"),
    "berxit": ("learned", "confidence"),
    "msdnet": ("budgeted", "confidence"),
    "lgvit": ("confidence",),
}
ONCE = ("joint_linear", "pabee", "berxit", "msdnet", "lgvit")  # too long to train for every seed


def trained(method: str, seed: int, runs: Path, overrides: list[str]) -> Path:
    """The method's run with a seed: there already, or trained now."""
    name = f"{method.replace('_', '-')}-seed-{seed}"
    command = [sys.executable, "-m", "offramp.cli.main", "train"]
    command += [str(RECIPES / f"deit_tiny_cifar100_112_{method}.yaml"), "--runs", str(runs)]
    command += ["--resume", f"name={name}", f"seed={seed}", *overrides]
    if subprocess.run(command, check=False).returncode:
        raise OfframpError(f"training {name} failed (its message stands above)")
    return runs / name


def main(arguments: argparse.Namespace) -> None:
    overrides = [f"data.limit={arguments.limit}"] if arguments.limit else []
    start = [*overrides, f"model.pretrained={arguments.pretrained}"]
    backbone = trained(BACKBONE, 0, arguments.runs, start)
    specs = []
    for method in arguments.only or METHODS:
        seeds = arguments.seeds[:1] if method in ONCE else arguments.seeds
        joint = [*start] if method in ONCE else [*overrides, f"model.pretrained={backbone}"]
        for seed in seeds:
            run = trained(method, seed, arguments.runs, joint)
            specs += [f"{run}:{policy}" for policy in METHODS[method]]
    found = compare(specs, reference=str(backbone))
    if arguments.engine:
        engine, _, precision = arguments.engine.partition(":")
        found = time_methods(found, specs, engine=engine, precision=precision or None)
    told = {
        "benchmark": "method_comparison",
        "command": "python benchmarks/method_comparison.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
    }
    write_json(arguments.out, told | found.model_dump(mode="json"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretrained", required=True, help="ImageNet weights of DeiT-tiny")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2))
    parser.add_argument("--only", action="append", choices=list(METHODS), help="(repeat)")
    parser.add_argument("--limit", type=int, help="training images, to try the road")
    parser.add_argument("--engine", help="also time each, as openvino or openvino:bf16")
    parser.add_argument("--runs", type=Path, default=Path("runs/method_comparison"))
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    try:
        main(parse())
    except OfframpError as error:
        sys.exit(str(error))
