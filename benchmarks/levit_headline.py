"""LeViT's headline, checked here: how much faster than an EfficientNet of the same accuracy?

    python benchmarks/levit_headline.py

The paper (arXiv:2104.01136) says five times on CPU at about 80 % ImageNet top-1. Every LeViT is
set against the EfficientNets whose published accuracy is closest to its own, each at the input
size that accuracy was measured at, on one core, all in one run and in turns. Weights are random:
they do not change the time. Let nothing else run on the machine meanwhile.
"""

import argparse
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from offramp.frontier import Entry, Frontier, measure_frontier

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for

CLAIM = {"accuracy": 80.0, "times_faster": 5.0, "source": "arXiv:2104.01136, abstract"}
LEVITS = ("levit_128", "levit_192", "levit_256")
EFFICIENTNETS = (
    "tf_efficientnet_b1.in1k",
    "efficientnet_b2.ra_in1k",
    "tf_efficientnet_b2.in1k",
    "efficientnet_b3.ra2_in1k",
)
SAME = 0.6  # points: how close two accuracies must be to be called the same


def pairs(found: Frontier, engine: str) -> list[dict[str, Any]]:
    """LeViT and EfficientNet of the same published accuracy, the nearest to the claim's first."""
    made = [
        pair(levit, other)
        for levit in found.on(engine)
        for other in found.on(engine)
        if levit.name in LEVITS and other.name in EFFICIENTNETS and _apart(levit, other) <= SAME
    ]
    return sorted(
        made, key=lambda p: (_from_claim(p), abs(p["accuracies"][0] - p["accuracies"][1]))
    )


def pair(levit: Entry, other: Entry) -> dict[str, Any]:
    """How many times longer the EfficientNet takes: median and quartiles of the rounds' ratios."""
    ratios = [b / a for a, b in zip(levit.rounds_ms, other.rounds_ms, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return {
        "engine": levit.engine,
        "models": [levit.name, other.name],
        "accuracies": [levit.accuracy, other.accuracy],
        "ms": [levit.ms, other.ms],
        "macs_ratio": other.macs / levit.macs,
        "times_faster": median(ratios),
        "quartiles": [low, high],
    }


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    found = measure_frontier(
        [*LEVITS, *EFFICIENTNETS],
        engines=arguments.engine.split(","),
        batch_size=arguments.batch,
        images=arguments.images,
        rounds=arguments.rounds,
        threads=1,
    )
    return {
        "benchmark": "levit_headline",
        "command": "python benchmarks/levit_headline.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "claim": CLAIM,
        "pairs": [row for engine in found.engines for row in pairs(found, engine)],
        "frontier": found.report(),
    }


def _apart(one: Entry, other: Entry) -> float:
    return abs((one.accuracy or 0) - (other.accuracy or 100))


def _from_claim(row: dict[str, Any]) -> float:
    return abs(row["accuracies"][0] - CLAIM["accuracy"])


def show(found: dict[str, Any]) -> None:
    for row in found["pairs"]:
        (levit, other), (low, high) = row["models"], row["quartiles"]
        print(
            f"{row['engine']}: {levit} ({row['accuracies'][0]} %) is {row['times_faster']:.2f}× as "
            f"fast as {other} ({row['accuracies'][1]} %), quartiles {low:.2f}…{high:.2f}; "
            f"MACs {row['macs_ratio']:.2f}×"
        )


if __name__ == "__main__":
    parser = parser_for(__doc__, "levit_headline")
    parser.add_argument("--engine", default="torch,openvino", help="engines, with commas")
    parser.add_argument("--batch", type=int, default=1, help="images per batch (default: 1)")
    parser.add_argument("--images", type=int, default=32, help="per model and round (default: 32)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    carry_out(parser, main, show)
