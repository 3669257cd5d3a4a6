"""What an operating point is worth on the engines people deploy with.

    python benchmarks/engines.py runs/NAME --engine openvino:fp32,openvino:bf16,onnxruntime

Needs a trained run. For every engine, in a process of its own: records of the calibration and
test split, a latency table, operating points chosen by measured time at batch 1, 8 and 32 for
each promised loss, and then, interleaved in one run: the point against the unmodified model on the
same engine, the same exits when none ever fires against all of them in one graph, peak memory of
exported bundles, and for ONNX the single file with nested ``If`` against the bundle. Writes
benchmarks/results/engines.json, one entry per engine; others stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from script import commit
from torch import Tensor, nn

from offramp.calibration import OperatingPoint, evaluate
from offramp.costs import describe_environment
from offramp.costs.clock import timed
from offramp.files import read_json, write_json
from offramp.footprint import peak_memories
from offramp.policies import Confidence
from offramp.runs import RunFolder, calibrate_run
from offramp.runtime import ENGINES, EngineOptions, bench, compile_runner, latency_table
from offramp.runtime.bundle import export_bundle, load_bundle
from offramp.runtime.parts import Layout, build_parts

OUT = Path(__file__).parent / "results" / "engines.json"
PLANS = {1: (1,), 8: (8,), 32: (32, 128)}  # batch size a plan is chosen for: sizes it is timed at
TABLES = (1, 2, 4, 8, 16, 32)  # where latencies are measured
IDLE = 2  # rounds of what never leaves, for every other round: a small difference
FIXED = 8  # up to here both contenders have fixed shapes


class AllExits(nn.Module):
    """Every segment of a program in one graph: nothing can leave, nothing is cut."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        says = [f"{name}{i}" for i, part in enumerate(parts) for name in part.layout.says]
        last = parts[-1].layout.exit_index
        self.layout = Layout(last, parts[0].layout.inputs, (), tuple(says))
        self.example = parts[0].example

    def forward(self, *flow: Tensor) -> tuple[Tensor, ...]:
        said: list[Tensor] = []
        for part in self.parts:
            returned = part(*flow)
            width = len(part.layout.flow)
            flow, said = returned[:width], [*said, *returned[width:]]
        return tuple(said)


def measure(run: RunFolder, spec: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one engine and precision."""
    engine, _, precision = spec.partition(":")
    options = run.engine_options(engine, precision or None)
    records = run.records("test", engine=engine, precision=precision or None, progress=False)
    images = run.images("test", arguments.images)
    say(f"{spec}: latency table")
    tables = latency_table(
        run.model, images, TABLES, engine=engine, options=options, repeats=arguments.rounds * 3
    )
    found: dict[str, Any] = {
        "engine": engine,
        "precision": records.meta.precision,
        "command": "python benchmarks/engines.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "environment": describe_environment(),
        "data": {"name": run.data.name, "split": "test", "images": len(images)},
        "exits": dict(zip(run.model.exit_names, records.accuracy, strict=True)),
        "latency": {str(size): table.model_dump(mode="json") for size, table in tables.items()},
        "points": {},
    }
    for size, timed_at in PLANS.items():
        for drop in arguments.drops:
            name = f"{engine}-{records.meta.precision}-batch-{size}-drop-{drop:g}"
            say(f"{spec}: {name}")
            _, point = calibrate_run(
                run,
                max_drop=drop,
                engine=engine,
                precision=precision or None,
                times={n: table for n, table in tables.items() if n <= size},
                name=name,
                progress=False,
            )
            timing = None
            for batch in (s for s in timed_at if s <= len(images)):
                shapes = replace(options, batch_size=batch if batch <= FIXED else None)
                one = bench(
                    run.model,
                    point,
                    images,
                    [batch],
                    rounds=arguments.rounds,
                    costs=run.costs,
                    engine=engine,
                    options=shapes,
                )
                together = [*(timing.batches if timing else []), *one.batches]
                timing = one.model_copy(update={"batches": together})
            assert timing is not None
            found["points"][name] = {
                "max_drop": drop,
                "planned_for_batch": size,
                "active": [run.model.exit_names[k] for k in point.active],
                "evaluation": evaluate(point, records).model_dump(mode="json"),
                "timing": timing.model_dump(mode="json"),
                "never_firing": never_firing(run, point, images, options, arguments.rounds, size),
            }
            show(name, found["points"][name])
    chosen = f"{engine}-{records.meta.precision}-batch-1-drop-{arguments.drops[0]:g}"
    dynamic, full = peak_memories(run, chosen, 32)
    found["memory_mib"] = {"point": dynamic, "unmodified": full, "ratio": dynamic / full}
    say(f"{spec}: memory {dynamic:.0f} MiB, unmodified {full:.0f} MiB: {dynamic / full:.2f}")
    if engine == "onnxruntime" and records.meta.precision == "float32":
        found["single"] = single(run, run.point(chosen)[1], arguments.rounds)
        say(f"{spec}: single.onnx {found['single']}")
    return found


def never_firing(
    run: RunFolder,
    point: OperatingPoint,
    images: Tensor,
    options: EngineOptions,
    rounds: int,
    planned: int,
) -> float:
    """All exits of a point active but none firing, over the same exits compiled as one graph."""
    never = Confidence.shared(Confidence.never, run.model.num_exits)
    build = ENGINES.get(point.engine)(options)
    runner = compile_runner(
        run.model, policy=never, active=point.active, engine=point.engine, options=options
    )
    parts = build_parts(run.model, sorted(point.active), never, dtype=build.part_dtype)
    joint = build.prepare([AllExits(parts).eval()]).segments[0].call  # type: ignore[list-item]
    with torch.inference_mode():
        groups = [group for group in images.split(planned) if len(group) == planned][:64]
        ratios = [in_turn((runner, joint), groups, turn) for turn in range(IDLE * rounds + 1)]
    return median(ratios[1:])


def single(run: RunFolder, point: OperatingPoint, rounds: int) -> dict[str, Any]:
    """The file with nested ``If`` in plain ONNX Runtime against the bundle, on 1,000 images."""
    import onnxruntime as ort

    images = run.images("test", 1000)
    with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(run.model, point, bundle, images=images[:16])
        runner = load_bundle(bundle)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        file = bundle / "single.onnx"
        session = ort.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])

        def alone(image: Tensor) -> Any:
            return session.run(["answer", "exit"], {"images": image.numpy()})

        same_exit = same_label = 0
        ratios, said = [], []
        for image in images.split(1):
            wanted, (answer, left) = runner(image), alone(image)
            same_exit += int(wanted.exit) == int(left[0])
            same_label += int(wanted.labels) == int(answer.argmax())
            said.append(int(left[0]))
        for turn in range(rounds):
            ratios.append(in_turn((alone, runner), images[:256].split(1), turn))
        segments = [bundle / name for name in ("segment-*.onnx",)]
        weights = sum(p.numel() * p.element_size() for p in _weights(run, point))
        return {
            "images": len(images),
            "same_exit": same_exit,
            "same_label": same_label,
            "time_over_bundle": median(ratios),
            "bytes": file.stat().st_size,
            "segment_bytes": sum(f.stat().st_size for s in segments for f in bundle.glob(s.name)),
            "bytes_over_weights": file.stat().st_size / weights,
        }


def in_turn(pair: Sequence[Callable[[Tensor], Any]], groups: Sequence[Tensor], turn: int) -> float:
    """Time of the first over the second on the same batches; who begins changes with ``turn``."""
    times = [0.0, 0.0]
    for who in (0, 1) if turn % 2 else (1, 0):
        pair[who](groups[0])  # brings back its caches
        times[who] = sum(timed(pair[who], group)[0] for group in groups)
    return times[0] / times[1]


def _weights(run: RunFolder, point: OperatingPoint) -> list[Tensor]:
    """Parameters and buffers the point's segments use, each once."""
    parts = build_parts(run.model, sorted(point.active), point.policy_object())
    tensors = {}
    for part in parts:
        reached = [part.segment.head, *part.segment.chain.steps]
        for module in [m for m in reached if m is not None] + [part.segment.chain.backbone]:
            tensors |= {id(t): t for t in (*module.parameters(), *module.buffers())}
    return list(tensors.values())


def show(name: str, found: dict[str, Any]) -> None:
    judged = found["evaluation"]
    say(
        f"  {len(found['active'])} exits, loses {judged['drop']:.2f}, layers "
        f"{judged['speedup_layers']:.2f}, MACs {judged['speedup_macs']:.2f}, never firing "
        f"{found['never_firing']:.3f}"
    )
    for row in found["timing"]["batches"]:
        say(
            f"  batch {row['batch_size']:3}: time {row['speedup_time']:.2f}, ideal "
            f"{row['speedup_ideal']:.2f}, reached {row['realised']:.3f}, time/MACs "
            f"{row['efficiency']:.3f}, stream {row['speedup_stream']:.2f}, no exits "
            f"{row['no_exit_overhead']:.3f}"
        )


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a trained run")
    parser.add_argument("--engine", default="torch,openvino:fp32,openvino:bf16,onnxruntime")
    parser.add_argument("--drops", default=(0.5, 1.0, 2.0), type=_numbers)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main() -> None:
    arguments = parse()
    specs = arguments.engine.split(",")
    if len(specs) > 1:  # engines with thread pools of their own disturb each other
        for spec in specs:
            place = sys.argv.index("--engine") + 1 if "--engine" in sys.argv else None
            words = sys.argv[1:place] if place else [*sys.argv[1:], "--engine"]
            rest = sys.argv[place + 1 :] if place else []
            subprocess.run([sys.executable, __file__, *words, spec, *rest], check=True)
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run = RunFolder(arguments.run).check()
    found = measure(run, specs[0], arguments)
    kept = read_json(arguments.out) if arguments.out.is_file() else {"benchmark": "engines"}
    engines = kept.get("engines", {}) | {f"{found['engine']}:{found['precision']}": found}
    write_json(arguments.out, kept | {"model": run.model.config.backbone, "engines": engines})
    sys.stdout.write(json.dumps({"out": str(arguments.out), "engines": list(engines)}) + "\n")


if __name__ == "__main__":
    main()
