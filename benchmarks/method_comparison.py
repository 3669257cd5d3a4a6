"""Every way to leave early on one backbone, at equal cost and at equal accuracy.

    python benchmarks/method_comparison.py --pretrained PATH [--seeds 0,1,2] [--only NAME]

Trains the recipes of ``METHODS``. Most start from one fine-tuned run, leave its backbone as it is
and share its cached features. Those that train backbone and exits together start from the ImageNet
weights, as the fine-tuned run did, with as many epochs as their recipes say. Beside them stand two
cascades of plain models: the fine-tuned one at two sizes, and the best pair of it and one that was
fine-tuned at a smaller size. All are compared as ``offramp compare`` does. A run that is there
already is not trained again, and one that was cut off is resumed, so the script goes on where it
stood. Writes benchmarks/results/method_comparison.json with the table and plot beside it.
``--limit N`` trains on N images, to try the road.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from script import commit, told_without

from offramp.cascades import Plan, search
from offramp.cascades.contestants import contestants, macs_of, pool_of
from offramp.cascades.folder import save_cascade
from offramp.comparison import compare
from offramp.comparison.timing import time_methods
from offramp.errors import OfframpError
from offramp.files import write_atomic, write_json
from offramp.report.comparison import markdown, save_comparison_plot

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
    "deebert": ("entropy", "patience"),
    "ztw": ("confidence", "ztw_geometric"),
    "boosted": ("boosted",),
    "joint_linear": ("confidence", "patience"),
    "pabee": ("patience", "confidence"),
    "berxit": ("learned", "confidence"),
    "msdnet": ("budgeted", "confidence"),
    "lgvit": ("confidence",),
}
JOINT = ("joint_linear", "pabee", "berxit", "msdnet", "boosted", "lgvit")
MAPS = ("classifier_wise_vit_ee", "classifier_wise_cnn_add_ee")  # heads that are networks
SIZES = (64, 80, 96)  # pixels of the smaller look in a cascade; the fine-tuned run has 112
SMALL = 64
SEED = re.compile(r"-seed-\d+$")
CASCADES = ("self_cascade", "two_models")


def trained(method: str, seed: int, runs: Path, overrides: list[str], name: str = "") -> Path:
    """The method's run with a seed: there already, or trained now."""
    name = f"{name or method.replace('_', '-')}-seed-{seed}"
    if (runs / name / "model.safetensors").is_file():
        return runs / name
    command = [sys.executable, "-m", "offramp.cli.main", "train"]
    command += [str(RECIPES / f"deit_tiny_cifar100_112_{method}.yaml"), "--runs", str(runs)]
    command += ["--resume", f"name={name}", f"seed={seed}", *overrides]
    if subprocess.run(command, check=False).returncode:
        raise OfframpError(f"training {name} failed (its message stands above)")
    return runs / name


def settings(method: str, arguments: argparse.Namespace, backbone: Path) -> list[str]:
    """What a method's recipe is given besides."""
    limit = [f"data.limit={arguments.limit}"] if arguments.limit else []
    if method in (BACKBONE, *JOINT):
        return [*limit, f"model.pretrained={arguments.pretrained}"]
    given = [*limit, f"model.pretrained={backbone}"]
    if method in MAPS and arguments.map_epochs:
        given.append(f"recipe.heads.epochs={arguments.map_epochs}")
    return [*given, f"recipe.cache_folder={arguments.runs / 'features'}"]


def cascade(name: str, given: list[str], runs: Path) -> Path | None:
    """The pair of models that costs least at half a point lost, by records of the calibration
    split, as a run; None where any pair is worse than a model alone."""
    path = runs / name.replace("_", "-")
    if (path / "config.json").is_file():
        return path
    members = contestants(given)
    pool = pool_of(members, macs_of(members), unit="MACs", progress=False)
    pairs = [plan for plan in search(pool, longest=2) if len(plan.members) == 2]

    def worth(plan: Plan) -> tuple[bool, float, float]:
        return plan.drop > 0.005, plan.cost if plan.drop <= 0.005 else plan.drop, plan.cost

    if not pairs:
        print(f"{name}: every pair is worse than a model alone", file=sys.stderr)
        return None
    best = min(pairs, key=worth)
    names = [pool.names[m] for m in best.members]
    print(f"{name}: {' then '.join(names)}", file=sys.stderr)
    by_name = {member.name: member for member in members}
    save_cascade([by_name[name] for name in names], path)
    return path


def main(arguments: argparse.Namespace) -> None:
    backbone = arguments.runs / f"{BACKBONE}-seed-0"
    trained(BACKBONE, 0, arguments.runs, settings(BACKBONE, arguments, backbone))
    specs = []
    for method in arguments.only or METHODS:
        for seed in arguments.seeds:
            run = trained(method, seed, arguments.runs, settings(method, arguments, backbone))
            specs += [f"{run}:{policy}" for policy in METHODS[method]]
    if arguments.cascades:
        plain = [*settings(BACKBONE, arguments, backbone), f"model.image_size={SMALL}"]
        plain.append(f"recipe.finetune.epochs={arguments.small_epochs}")
        small = trained(BACKBONE, 0, arguments.runs, plain, f"{BACKBONE}-{SMALL}-px")
        sizes = ",".join(str(size) for size in (*SIZES, 112))
        pools = ([f"{backbone}@{sizes}"], [str(backbone), str(small)])
        for name, pool in zip(CASCADES, pools, strict=True):
            if path := cascade(name, pool, arguments.runs):
                specs.append(f"{path}:confidence")
    found = compare(specs, reference=str(backbone))
    if arguments.engine:
        engine, _, precision = arguments.engine.partition(":")
        found = time_methods(found, specs, engine=engine, precision=precision or None)
    for method in found.methods:
        method.name = SEED.sub("", method.name)
        if method.recipe["model"].get("pretrained") == arguments.pretrained:
            method.recipe["model"]["pretrained"] = "PATH"
    told = {
        "benchmark": "method_comparison",
        "command": told_without(sys.argv, arguments.pretrained),
        "commit": commit(),
    }
    write_json(arguments.out, told | found.model_dump(mode="json"))
    write_atomic(arguments.out.with_suffix(".md"), markdown(found))
    save_comparison_plot(found, arguments.out.with_suffix(".png"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretrained", required=True, help="ImageNet weights of DeiT-tiny")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2))
    parser.add_argument("--only", action="append", choices=list(METHODS), help="(repeat)")
    parser.add_argument("--no-cascades", dest="cascades", action="store_false")
    parser.add_argument("--map-epochs", type=int, help="of heads on token maps (else the recipe's)")
    parser.add_argument("--small-epochs", type=int, default=2, help="of the cascade's small model")
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
