"""How much of the ideal speed-up CUDA graphs realise, beside eager and compiled torch.

    python benchmarks/cuda_graphs.py                                # ViT-S, random weights
    python benchmarks/cuda_graphs.py --run runs/NAME --point NAME   # a calibrated run
    python benchmarks/cuda_graphs.py --dry-run                      # tiny, on CPU, writes nothing

Needs an NVIDIA GPU. With random weights, thresholds are placed so that a given share of noise
images leaves at each exit. Ideal is the sum over segments, heads included, of the share of the
images that come there times the segment's own time on the whole batch. Engines take turns batch by
batch; each runs by a plan from its own measured times. Writes benchmarks/results/cuda_graphs.json.
Let nothing else run on the machine meanwhile.
"""

import argparse
import random
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from offramp import create
from offramp.costs import describe_environment
from offramp.costs.clock import timed
from offramp.errors import OfframpError
from offramp.files import write_json
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Policy
from offramp.runs import RunFolder
from offramp.runtime import EngineOptions, Runner, compile_runner
from offramp.runtime.batching import BatchPlan
from offramp.runtime.latency import per_segment
from offramp.runtime.pieces import powers_of_two
from offramp.runtime.static import Static, static_program

sys.path.insert(0, str(Path(__file__).parent))
from script import commit

OUT = Path(__file__).parent / "results" / "cuda_graphs.json"
GOAL = 0.9  # realised over ideal, for cuda-graphs
SHARES = (0.2, 0.2, 0.2)  # of all images, at the early exits in turn; the rest stays to the end
TINY = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    dry = arguments.dry_run
    if not dry and not torch.cuda.is_available():
        raise OfframpError("this benchmark needs an NVIDIA GPU (--dry-run rehearses it on CPU)")
    device = torch.device("cpu" if dry else "cuda")
    sizes = [4, 8] if dry else [int(size) for size in arguments.batch.split(",")]
    engines = ["cuda-graphs", "torch"] if dry else arguments.engine.split(",")
    count = 2 * max(sizes) if dry else max(arguments.images, max(sizes))
    if arguments.run:
        run = RunFolder(arguments.run).check()
        name, point = run.point(arguments.point)
        model, policy, active = run.model.eval(), point.policy_object(), sorted(point.active)
        images, what = run.images("test", count), {"run": run.config.name, "point": name}
    else:
        model = random_model(arguments.backbone, tiny=dry)
        images, active = noise(model, count), list(range(len(model.exits)))
        policy, what = None, {"weights": "random", "images": "noise", "shares": SHARES}
    model, images = model.to(device), images.to(device)
    rows = []
    for precision in ["float32"] if dry else arguments.precision.split(","):
        chosen = policy or placed(model, images, precision)
        for size in sizes:
            rows += measure(
                model, chosen, active, images, size, engines, precision, arguments.rounds
            )
    return {
        "benchmark": "cuda_graphs",
        "command": "python benchmarks/cuda_graphs.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "model": model.config.backbone,
        "exits": [model.exit_names[k] for k in active],
        "goal": GOAL,
        **what,
        "rows": rows,
    }


def random_model(backbone: str, *, tiny: bool) -> MultiExitModel:
    """LGViT's exits on a backbone of that size; random weights, to which all images differ."""
    torch.manual_seed(0)
    made = {"image_size": 32, "backbone_args": TINY} if tiny else {}
    model = create(backbone, exits="lgvit", count=len(SHARES), num_classes=100, **made).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.normal_(std=1.5 * module.weight[0].numel() ** -0.5)
    return model


def noise(model: MultiExitModel, count: int) -> Tensor:
    """Images (count, C, H, W) of all contrasts."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, model.chain.in_chans, *model.chain.image_size, generator=generator)
    return images * torch.rand(count, 1, 1, 1, generator=generator)


def placed(model: MultiExitModel, images: Tensor, precision: str) -> Policy:
    """Confidence thresholds at which `SHARES` of the images leave, midway between scores."""
    exits, staying = model.num_exits, torch.ones(len(images), dtype=torch.bool)
    device = str(images.device)
    thresholds = [Confidence.never] * exits
    for k, share in enumerate(SHARES):
        # Alone, so that everybody comes to exit k and nobody leaves.
        alone = compile_runner(
            model,
            policy=Confidence.shared(Confidence.always, exits),
            active=[k],
            engine="torch",
            device=device,
            precision=precision,
        )
        said = torch.cat([alone(batch).logits for batch in images.split(64)])
        score = said.float().softmax(-1).amax(-1).cpu()
        ordered = score[staying].sort(descending=True).values
        rank = min(round(share * len(images)), len(ordered) - 1)
        thresholds[k] = float(ordered[rank - 1] + ordered[rank]) / 2
        staying &= score <= thresholds[k]
    return Confidence(thresholds)


def measure(
    model: MultiExitModel,
    policy: Policy,
    active: list[int],
    images: Tensor,
    size: int,
    engines: list[str],
    precision: str,
    rounds: int,
) -> list[dict[str, Any]]:
    """One row per engine: realised and ideal time at a batch size, and the unmodified model's."""
    options = EngineOptions(precision=precision, device=images.device, batch_size=size)
    contenders: dict[str, tuple[Runner, Static]] = {}
    for engine in engines:
        runner = compile_runner(model, policy=policy, active=active, engine=engine, options=options)
        runner.plan = BatchPlan(runner.measure(images, powers_of_two(size)))
        whole = static_program(model.chain.whole, model.chain.image_size, engine, options=options)
        contenders[engine] = (runner, whole)
    groups = [group for group in images.split(size) if len(group) == size]
    times: dict[str, list[tuple[float, float, list[float]]]] = {name: [] for name in engines}
    for turn in range(-1, rounds):
        for engine in random.Random(turn).sample(engines, len(engines)):
            found = one_round(*contenders[engine], groups)
            if turn >= 0:
                times[engine].append(found)
    return [
        row(engine, precision, contenders[engine][0], groups, times[engine]) for engine in engines
    ]


def one_round(
    runner: Runner, whole: Static, groups: list[Tensor]
) -> tuple[float, float, list[float]]:
    """Milliseconds per image: the runner, the unmodified model, every segment on whole batches."""
    device, images = groups[0].device, sum(len(group) for group in groups)
    typed = [group.to(runner.dtype) for group in groups]
    dynamic = sum(timed(runner, group, device=device)[0] for group in typed)
    static = sum(timed(whole, group, device=device)[0] for group in typed)
    with torch.inference_mode():
        pieces = [per_segment(runner.program, (x, *runner.memory(len(x)))) for x in typed]
    return dynamic / images, static / images, [median(ms) for ms in zip(*pieces, strict=True)]


def row(
    engine: str,
    precision: str,
    runner: Runner,
    groups: list[Tensor],
    times: list[tuple[float, float, list[float]]],
) -> dict[str, Any]:
    exits = torch.cat([runner(group).exit for group in groups])
    reach = [float((exits >= k).double().mean()) for k in runner.executed.exits]
    ideals = [sum(r * ms for r, ms in zip(reach, ms, strict=True)) for _, _, ms in times]
    result = {
        "engine": engine,
        "precision": precision,
        "batch_size": len(groups[0]),
        "images": len(exits),
        "rounds": len(times),
        "full_ms": median(full for _, full, _ in times),
        "dynamic_ms": median(dynamic for dynamic, _, _ in times),
        "segment_ms": [median(column) for column in zip(*(ms for *_, ms in times), strict=True)],
        "ideal_ms": median(ideals),
        "realised": median(i / dynamic for i, (dynamic, *_) in zip(ideals, times, strict=True)),
        "speedup_time": median(full / dynamic for dynamic, full, _ in times),
        "speedup_ideal": median(full / i for i, (_, full, _) in zip(ideals, times, strict=True)),
        "reach": reach,
    }
    assert runner.plan is not None
    result["plan"] = runner.plan.times.model_dump(mode="json")
    show(result)
    return result


def show(result: dict[str, Any]) -> None:
    kept = "≥" if result["realised"] >= GOAL else "<"
    goal = f" {kept} {GOAL}" if result["engine"] == "cuda-graphs" else ""
    print(
        f"{result['engine']:<14} {result['precision']:<9} batch {result['batch_size']:>3}  "
        f"{result['full_ms']:.4f} → {result['dynamic_ms']:.4f} ms an image  "
        f"time {result['speedup_time']:.2f}×  ideal {result['speedup_ideal']:.2f}×  "
        f"realised/ideal {result['realised']:.3f}{goal}",
        flush=True,
    )


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--run", type=Path, help="run folder (default: random weights)")
    flags.add_argument("--point", help="name of its operating point (default: the newest)")
    flags.add_argument("--backbone", default="vit_small_patch16_224", help="for random weights")
    flags.add_argument("--engine", default="cuda-graphs,torch,torch-compile")
    flags.add_argument("--precision", default="float32,bfloat16")
    flags.add_argument("--batch", default="32,128,256", help="batch sizes (default: 32,128,256)")
    flags.add_argument("--images", type=int, default=1024, help="images per round")
    flags.add_argument("--rounds", type=int, default=9, help="measured rounds (default: 9)")
    flags.add_argument("--dry-run", action="store_true", help="tiny, on CPU; writes nothing")
    flags.add_argument("--results-file", type=Path, default=OUT)
    return flags


if __name__ == "__main__":
    options = parser().parse_args()
    try:
        results = main(options)
    except OfframpError as error:
        sys.exit(f"{error}")
    if not options.dry_run:
        write_json(options.results_file, results)
