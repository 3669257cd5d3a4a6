"""Deadlines: are random time budgets kept, and is nothing lost against the best exit that fits?

    python benchmarks/deadlines.py runs/NAME --engine openvino --requests 1000

Needs a trained run and its test images. Pure anytime: every exit is active and nobody leaves by
confidence. Single requests with random images come with budgets spread evenly from what the first
exit takes to a fifth more than what the last one takes, in the time measured just before. For each:
was it answered within the budget, and within the budget plus the time of one segment; and was the
answer as good as that of the best exit that fits, by the records. Writes
benchmarks/results/deadlines.json, one entry per run, engine and seed; others stay. Let nothing
else run on the machine meanwhile.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from script import commit
from torch import Tensor

from offramp.calibration import Records
from offramp.costs import describe_environment
from offramp.data import batches
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.policies import Confidence
from offramp.runs import RunFolder
from offramp.runtime import Runner, compile_runner, pace

OUT = Path(__file__).parent / "results" / "deadlines.json"
PROMISED_SHARE, PROMISED_LOSS = 0.99, 0.5
BEYOND = 1.2  # the largest budget, over the time of the last exit
BANDS = 4  # of budgets, in which accuracy is compared


def measure(run: RunFolder, spec: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one engine and precision."""
    engine, _, precision = spec.partition(":")
    options = run.engine_options(engine, precision or None, batch_size=1)
    records = run.records("test", engine=engine, precision=precision or None, progress=False)
    images, rows = _requests(run, records, arguments.requests, arguments.seed)
    never = Confidence.shared(Confidence.never, run.model.num_exits)
    runner = compile_runner(run.model, policy=never, engine=engine, options=options)
    sample = images[: arguments.images]
    expected = runner.measure(sample, [1], rounds=arguments.rounds)
    runner(sample[:1], deadline_ms=1e6)  # it measures its own table, and follows it from there
    assert runner.times is not None
    segments = [segment.ms[1] for segment in expected.segments]
    call_ms = max(0.0, _call_ms(runner, sample) - sum(segments))
    reached = [call_ms + ms for ms in accumulate(segments)]
    drawn = np.random.default_rng(arguments.seed).uniform(
        reached[0], BEYOND * reached[-1], len(images)
    )
    took, exits, cut = _ask(runner, images, drawn.tolist())
    correct = records.correct.numpy()[rows]
    return {
        "run": run.config.name,
        "engine": engine,
        "precision": records.meta.precision,
        "command": "python benchmarks/deadlines.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "data": {"name": run.data.name, "split": "test", "requests": len(images)},
        "seed": arguments.seed,
        "quantile": pace.QUANTILE,
        "exit_names": run.model.exit_names,
        "segment_ms": segments,
        "expected_ms": [segment.ms[1] for segment in runner.times.segments],
        "call_ms": call_ms,
        "reached_ms": reached,
        **_kept(np.array(took), drawn, median(segments[1:] or segments)),
        "cut": float(np.mean(cut)),
        **_accuracy(np.array(exits), drawn, np.array(reached), correct, records.accuracy),
    }


def _requests(run: RunFolder, records: Records, count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Random test images (N, 3, H, W) and the records' rows of the same samples."""
    part = run.data.split("test").limited(count)
    stream = batches(part, batch_size=len(part), preprocessing=run.model.preprocessing)
    batch = next(iter(stream))
    row = {sample: i for i, sample in enumerate(records.ids.tolist())}
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    return batch.images[order], np.array([row[i] for i in batch.ids[order].tolist()])


def _call_ms(runner: Runner, images: Tensor) -> float:
    """Median time of a whole call without a deadline."""
    took = []
    for image in images:
        start = perf_counter()
        runner(image[None])
        took.append(1e3 * (perf_counter() - start))
    return median(took)


def _ask(
    runner: Runner, images: Tensor, budgets: Sequence[float]
) -> tuple[list[float], list[int], list[bool]]:
    """Milliseconds, exit and whether it was cut, of every request in turn."""
    took, exits, cut = [], [], []
    for image, budget in zip(images, budgets, strict=True):
        start = perf_counter()
        said = runner(image[None], deadline_ms=budget)
        took.append(1e3 * (perf_counter() - start))
        assert said.cut is not None
        exits.append(int(said.exit))
        cut.append(bool(said.cut))
    return took, exits, cut


def _kept(took: np.ndarray, budgets: np.ndarray, segment: float) -> dict[str, Any]:
    late = took - budgets
    share = float((late <= segment).mean())
    return {
        "within_budget": float((late <= 0).mean()),
        "one_segment_ms": segment,
        "within_budget_and_segment": share,
        "late_ms": {f"p{q:g}": float(np.percentile(late, q)) for q in (50, 95, 99, 100)},
        "used": float(np.mean(np.minimum(took, budgets) / budgets)),
        "in_time": share >= PROMISED_SHARE,
    }


def _accuracy(
    exits: np.ndarray,
    budgets: np.ndarray,
    reached: np.ndarray,
    correct: np.ndarray,
    accuracy: Sequence[float],
) -> dict[str, Any]:
    """Answered against the best exit that fits each budget, in percent.

    ``answered`` and ``best`` are counted on the requests' own images; ``expected_…`` take each
    exit's accuracy on the whole test split instead, which leaves out the luck of the draw.
    """
    known = np.asarray(accuracy)
    best = np.array(
        [int(known[: max(1, np.sum(reached <= budget))].argmax()) for budget in budgets]
    )
    rows = np.arange(len(exits))
    edges = np.quantile(budgets, np.linspace(0, 1, BANDS + 1))
    band = np.clip(np.searchsorted(edges, budgets, side="right") - 1, 0, BANDS - 1)

    def compared(chosen: np.ndarray) -> dict[str, Any]:
        mine, other = exits[chosen], best[chosen]
        return {
            "requests": int(chosen.sum()),
            "budgets_ms": [float(budgets[chosen].min()), float(budgets[chosen].max())],
            "answered": 100 * float(correct[rows[chosen], mine].mean()),
            "best": 100 * float(correct[rows[chosen], other].mean()),
            "expected_answered": 100 * float(known[mine].mean()),
            "expected_best": 100 * float(known[other].mean()),
            "same_exit": float((mine == other).mean()),
        }

    whole = compared(np.ones(len(exits), dtype=bool))
    return {
        "accuracy": whole,
        "bands": [compared(band == i) for i in range(BANDS) if (band == i).any()],
        "loss": whole["best"] - whole["answered"],
        "expected_loss": whole["expected_best"] - whole["expected_answered"],
        "accurate": whole["best"] - whole["answered"] <= PROMISED_LOSS,
    }


def show(found: dict[str, Any]) -> None:
    for what, held in (("in_time", "in time"), ("accurate", "accurate")):
        print(f"{'≥' if found[what] else 'NOT'} {held}", end="  ")
    print(
        f"{found['engine']} {found['precision']}: {100 * found['within_budget']:.1f} % within the "
        f"budget, {100 * found['within_budget_and_segment']:.1f} % with one segment more "
        f"({found['one_segment_ms']:.2f} ms); accuracy {found['accuracy']['answered']:.2f} %, "
        f"best that fits {found['accuracy']['best']:.2f} % "
        f"(expected loss {found['expected_loss']:+.2f})",
        flush=True,
    )


def main(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = RunFolder(arguments.run).check()
    out = arguments.results_file
    entries = read_json(out)["entries"] if out.is_file() else {}
    for spec in arguments.engine.split(","):
        found = measure(run, spec.strip(), arguments)
        show(found)
        entries[f"{found['run']}:{spec.strip()}:seed-{arguments.seed}"] = found
        write_json(out, {"benchmark": "deadlines", "entries": entries})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--engine", default="openvino", help="engines with commas (openvino:bf16)")
    parser.add_argument("--requests", type=int, default=1000, help="requests (default: 1000)")
    parser.add_argument("--images", type=int, default=64, help="images for measuring (default: 64)")
    parser.add_argument("--rounds", type=int, default=100, help="measured rounds (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="threads (default: torch's)")
    parser.add_argument("--results-file", type=Path, default=OUT)
    try:
        main(parser.parse_args())
    except OfframpError as error:
        sys.exit(f"{error}")
