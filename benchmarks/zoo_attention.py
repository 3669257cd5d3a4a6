"""What the zoo's own attention is worth: against plain implementations, and as maps grow.

    python benchmarks/zoo_attention.py

Times whole networks of ``offramp.zoo`` beside straightforward ones with the same weights (see
``references``), after checking that both answer alike; and ViL's sliding-window stages at two image
sizes beside the same stages with dense attention. Rounds are interleaved. Writes one JSON file with
the hardware, versions, threads, commit and command. Let nothing else run on the machine meanwhile;
``--quick`` only tries the script.
"""

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from references import shuffle, t2t, vil
from script import commit
from torch import Tensor, nn

from offramp import vision_cure
from offramp.costs import describe_environment
from offramp.costs.clock import timed
from offramp.files import write_json

vision_cure.ensure()

import timm  # noqa: E402

import offramp.zoo  # noqa: E402, F401  (registers its models)

# The targets of the project: no slower than the plain network, and time that grows as the pixels.
RATIO = 1.0
GROWTH = 4.4
# model → a straightforward network with its weights
REFERENCES: dict[str, Callable[[Any], nn.Module]] = {
    "vil_tiny": vil.reference,
    "vil_small": vil.reference,
    "t2t_vit_14": t2t.reference,
    "t2t_vit_t_14": t2t.reference,
    "shuffle_tiny": shuffle.reference,
}
SLIDING = ("vil_tiny", "vil_small")
SIZES = (224, 448)
AGREE = {"rtol": 1e-3, "atol": 1e-4}


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    kept = not arguments.give_back_memory and keep_memory()
    batches = [int(size) for size in arguments.batch.split(",")]
    names = arguments.model or list(REFERENCES)
    networks = {
        name: [compare(name, batch, arguments.rounds) for batch in batches] for name in names
    }
    stages = {
        name: growth(name, 1, arguments.rounds, arguments.sizes)
        for name in SLIDING
        if name in names
    }
    return {
        "benchmark": "zoo_attention",
        "command": "python benchmarks/zoo_attention.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "rounds": arguments.rounds,
        "freed_memory": "kept by the process" if kept else "as the system's allocator likes",
        "networks": networks,
        "sliding_stages": stages,
    }


def compare(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per image of a network and of its plain counterpart."""
    model = build(name)
    plain = REFERENCES[name](model).eval()
    x = images(batch, SIZES[0])
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x), **AGREE)
        ours, theirs = interleaved([lambda: model(x), lambda: plain(x)], rounds)
    row = {
        "batch_size": batch,
        "ms": median(ours) / batch,
        "reference_ms": median(theirs) / batch,
        **spread("ratio", ours, theirs),
    }
    verdict = "≤" if row["ratio"] <= RATIO else ">"
    print(
        f"{name}  batch {batch}  {row['ms']:.2f} ms, plain {row['reference_ms']:.2f} ms per image  "
        f"ratio {row['ratio']:.3f} {verdict} {RATIO}",
        flush=True,
    )
    return row


def growth(name: str, batch: int, rounds: int, sizes: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds per image of the sliding-window stages at two sizes, dense attention beside."""
    calls: list[Callable[[], Tensor]] = []
    for size in sizes:
        model = build(name, img_size=size)
        x = images(batch, size)
        for network in (model, vil.dense(model).eval()):
            calls.append(sliding_stages(network, x))
    with torch.inference_mode():
        small, dense_small, large, dense_large = interleaved(calls, rounds)
    row = {
        "batch_size": batch,
        "sizes": list(sizes),
        "ms": [median(small) / batch, median(large) / batch],
        "dense_ms": [median(dense_small) / batch, median(dense_large) / batch],
        **spread("growth", large, small),
        **spread("dense_growth", dense_large, dense_small),
    }
    verdict = "≤" if row["growth"] <= GROWTH else ">"
    print(
        f"{name} stages 1–2  batch {batch}  {row['ms'][0]:.2f} → {row['ms'][1]:.2f} ms per "
        f"image at {sizes[0]} → {sizes[1]} px  growth {row['growth']:.2f} {verdict} {GROWTH}  "
        f"dense {row['dense_ms'][0]:.2f} → {row['dense_ms'][1]:.2f} ms, {row['dense_growth']:.2f}",
        flush=True,
    )
    return row


def keep_memory() -> bool:
    """Ask glibc to keep what is freed; returns whether it will.

    Else large temporaries go back to the kernel after each call and are handed out again page by
    page, zeroed: that hits the plain networks and the larger maps most, and says nothing of them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_max = -1, -4  # names of options in malloc.h
    return bool(mallopt(trim_threshold, -1)) and bool(mallopt(mmap_max, 0))


def build(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def sliding_stages(model: Any, x: Tensor) -> Callable[[], Tensor]:
    """Stages 1 and 2, patch embeddings included."""

    def run() -> Tensor:
        first, second = model.stages[0], model.stages[1]
        return second(first.to_map(first(x)))

    return run


def interleaved(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Milliseconds of each call in each round; every other round runs backwards."""
    for call in calls:
        call()
    found: list[list[float]] = [[] for _ in calls]
    for i in range(rounds):
        order = list(enumerate(calls))
        for k, call in order if i % 2 == 0 else reversed(order):
            found[k].append(timed(call)[0])
    return found


def spread(name: str, above: list[float], below: list[float]) -> dict[str, Any]:
    """Median and quartiles of the ratio round by round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    quartiles = quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {name: median(ratios), f"{name}_quartiles": [quartiles[0], quartiles[2]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", action="append", choices=list(REFERENCES), help="(repeat)")
    parser.add_argument("--batch", default="1,8", help="batch sizes (default: 1,8)")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's)")
    parser.add_argument("--give-back-memory", action="store_true", help="leave malloc as it is")
    parser.add_argument("--quick", action="store_true", help="one image, one round, small growth")
    parser.add_argument(
        "--results-file", type=Path, default=Path("benchmarks/results/zoo_attention.json")
    )
    options = parser.parse_args()
    options.sizes = SIZES
    if options.quick:
        options.batch, options.rounds, options.sizes = "1", 1, (64, 128)
    results = main(options)
    if options.quick:
        print("a trial: nothing is written")
    else:
        write_json(options.results_file, results)
