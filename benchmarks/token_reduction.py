"""Token reduction without training: what accuracy it costs, and whether MACs become time.

    python benchmarks/token_reduction.py --weights deit_tiny.safetensors --data val.parquet

Every reducer at several strengths on one trained ViT: top-1, MACs, and time on each engine and
batch size, all in turns with the untouched model. ``auto`` is what `offramp.token_steps` would run.
The data are parquet files of images whose labels are the classifier's class numbers. Let nothing
else run on the machine meanwhile.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import offramp
from offramp.backbones import build_backbone, preprocessing_of
from offramp.chains.chain import Chain
from offramp.costs import describe_environment
from offramp.costs.macs import count_macs
from offramp.data import eval_transform
from offramp.data.parquet import images_and, parquet_parts
from offramp.reducers import ReducerSpec, reduced
from offramp.runtime.engines import EngineOptions
from offramp.runtime.static import static_program
from offramp.token_steps import advise, time_programs, timings, token_count

sys.path.insert(0, str(Path(__file__).parent))
from script import carry_out, commit, parser_for, timing, told_without

METHODS: dict[str, list[dict[str, Any]]] = {
    "tome": [{"r": r} for r in (2, 4, 8, 13)],
    "evit": [{"keep": keep} for keep in (0.9, 0.7, 0.5)],
    "evo_vit": [{"keep": keep, "classifier": "class"} for keep in (0.9, 0.7, 0.5)],
    "diffrate": [{}],
}


def load(path: Path, links: Chain, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of the parquet files, prepared as the weights want them."""
    transform = eval_transform(preprocessing_of(links))
    pictures: list[torch.Tensor] = []
    labels: list[int] = []
    for files in parquet_parts(path).values():
        images, numbers = images_and(files, "label")
        rows = range(len(images))[: None if limit is None else limit - len(labels)]
        pictures += [transform(images.open(row)) for row in rows]
        labels += [int(numbers[row]) for row in rows]
    return torch.stack(pictures), torch.tensor(labels)


@torch.inference_mode()
def accuracy(links: Chain, images: torch.Tensor, labels: torch.Tensor) -> float:
    said = torch.cat([links(batch).argmax(-1) for batch in images.split(32)])
    return 100 * float((said == labels).float().mean())


def timed_rows(
    links: Chain, specs: Sequence[ReducerSpec], images: torch.Tensor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Times of all specs on every engine and batch size, and what ``auto`` picks per method."""
    found = []
    chains = [links, *(reduced(links, spec) for spec in specs)]
    sizes = [int(size) for size in options.batch.split(",")]
    settings = EngineOptions(threads=options.threads, batch_size=max(sizes))
    for engine in options.engine.split(","):
        programs = [static_program(c, c.image_size, engine, options=settings) for c in chains]
        for batch in sizes:
            sample = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
            took = time_programs(programs, sample, rounds=options.rounds)
            measured = timings(chains, specs, took)
            advice = {
                method: advise(
                    [measured[0], *(t for t in measured if t.spec and t.spec.name == method)]
                )
                for method in {spec.name for spec in specs}
            }
            found.append(
                {
                    "engine": engine,
                    "batch": batch,
                    "untouched_ms": measured[0].ms,
                    "ms": [timing.ms for timing in measured[1:]],
                    "ratio": [timing.ratio for timing in measured[1:]],
                    "auto": {
                        method: {
                            "reducer": said.spec and said.spec.model_dump(),
                            "ratio": said.ratio,
                            "reason": said.reason,
                        }
                        for method, said in sorted(advice.items())
                    },
                }
            )
    return found


def main(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    pretrained = options.weights if options.weights else True
    links = offramp.chain(build_backbone(options.model, pretrained=pretrained).eval())
    images, labels = load(options.data, links, options.limit)
    specs = [
        ReducerSpec(name=name, options=given)
        for name in options.methods.split(",")
        for given in METHODS[name]
    ]
    one = images[:1]
    rows = []
    for spec in [None, *specs]:
        chain = reduced(links, spec).eval()
        rows.append(
            {
                "reducer": spec and spec.model_dump(),
                "top1": accuracy(chain, images, labels),
                "macs": count_macs(chain, one),
                "tokens": token_count(chain),
            }
        )
    return {
        "benchmark": "token_reduction",
        "command": told_without(sys.argv, options.weights, options.data),
        "commit": commit(),
        "environment": describe_environment(),
        "model": options.model,
        "samples": len(labels),
        "rows": rows,
        "times": timed_rows(links, specs, images, options),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The result as a table: accuracy, MACs, and time as a multiple of the untouched model's."""
    heads = [f"{t['engine']} b{t['batch']}" for t in result["times"]]
    made = ["reducer                          top-1  GMACs  " + "  ".join(heads)]
    for k, row in enumerate(result["rows"]):
        spec = row["reducer"]
        given = ", ".join(
            f"{key}={value}" for key, value in (spec or {}).get("options", {}).items()
        )
        name = f"{spec['name']} {given}".strip() if spec else "untouched"
        ratios = [1.0 if k == 0 else t["ratio"][k - 1] for t in result["times"]]
        cells = "  ".join(f"{r:{len(h)}.3f}" for r, h in zip(ratios, heads, strict=True))
        made.append(f"{name:<32} {row['top1']:5.1f}  {row['macs'] / 1e9:5.3f}  {cells}")
    return made


if __name__ == "__main__":
    parser = timing(parser_for(__doc__, "token_reduction"), batch="1,32")
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="timm model")
    parser.add_argument("--weights", help="local weights file (default: timm's own)")
    parser.add_argument("--data", type=Path, required=True, help="parquet file or folder")
    parser.add_argument("--limit", type=int, help="images (default: all)")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas")
    carry_out(parser, main, lambda found: print("\n".join(lines(found))))
