"""How much of a reducer's loss is the sample's? Answers lost and won on several sets of images.

    python benchmarks/token_loss.py --weights WEIGHTS --data A.parquet --data B.parquet

Every reducer of `token_reduction`, and ToMe with as many tokens merged early or late (`slope`), on
one trained ViT without training: which images the untouched model has right and the reduced one
wrong, and the other way round. Every set is also looked at in the mirror. The data are as there.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import offramp
from offramp.backbones import build_backbone
from offramp.chains.chain import Chain
from offramp.costs import describe_environment
from offramp.costs.macs import count_macs
from offramp.reducers import ReducerSpec, reduced

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for, told_without
from token_reduction import METHODS, load

LATE_OR_EARLY: list[dict[str, Any]] = [{"r": 8, "slope": slope} for slope in (-1.0, 1.0)]


@torch.inference_mode()
def right(links: Chain, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([links(batch).argmax(-1) for batch in images.split(32)]) == labels


def main(arguments: Any) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    links = offramp.chain(build_backbone(arguments.model, pretrained=arguments.weights).eval())
    sets = {}
    for path in arguments.data:
        images, labels = load(path, links, arguments.limit)
        name = path.stem if path.is_file() else path.name
        sets |= {name: (images, labels), f"{name}, mirrored": (images.flip(-1), labels)}
    whole = {name: right(links, *pair) for name, pair in sets.items()}
    rows = []
    tried = [(name, given) for name, many in METHODS.items() for given in many]
    for name, given in [*tried, *(("tome", given) for given in LATE_OR_EARLY)]:
        spec = ReducerSpec(name=name, options=given)
        chain = reduced(links, spec).eval()
        found = {}
        for where, pair in sets.items():
            mine = right(chain, *pair)
            lost, won = int((whole[where] & ~mine).sum()), int((mine & ~whole[where]).sum())
            found[where] = {"lost": lost, "won": won}
        macs = count_macs(chain, next(iter(sets.values()))[0][:1])
        rows.append({"reducer": spec.model_dump(), "macs": macs, "sets": found})
    return {
        "benchmark": "token_loss",
        "command": told_without(sys.argv, arguments.weights, *arguments.data),
        "commit": commit(),
        "environment": describe_environment(),
        "model": arguments.model,
        "macs": count_macs(links, next(iter(sets.values()))[0][:1]),
        "sets": {
            name: {"images": len(labels), "top1": 100 * float(whole[name].float().mean())}
            for name, (_, labels) in sets.items()
        },
        "rows": rows,
    }


def show(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        told = "  ".join(f"−{one['lost']} +{one['won']}" for one in row["sets"].values())
        print(row["reducer"]["name"], row["reducer"]["options"], told)


if __name__ == "__main__":
    parser = parser_for(__doc__, "token_loss")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="timm model")
    parser.add_argument("--weights", type=Path, default=True, help="file (default: timm's own)")
    parser.add_argument("--data", type=Path, action="append", required=True, help="(repeat)")
    parser.add_argument("--limit", type=int, help="images per set (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    carry_out(parser, main, show)
