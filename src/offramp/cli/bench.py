"""``offramp bench``: measured time next to the unmodified backbone on the same engine."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.terminal import AsJson, Run, bars, emit, show, table
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.runs import RunFolder
    from offramp.runtime import BenchResult

BENCHMARK = "benchmark.json"


def bench(
    run: Run,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engines with commas, a precision after a colon where it is not the engine's "
            "default: torch,openvino,openvino:bf16; the point's own when omitted."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8,32",
    point: Annotated[
        str | None, typer.Option(help="Operating point; the newest of the engine when omitted.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Different test images per round.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; medians are shown.")] = 7,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; torch's default when omitted.")
    ] = None,
    static: Annotated[
        str | None, typer.Option(help="Plain models to time beside it, with commas: timm names.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory too, in processes of its own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measured time next to the unmodified backbone.

    Both take turns on real test images; several engines each get a process of their own. Writes
    RUN/benchmark.json and ends with one JSON line. For a point with --max-latency-ms the times of
    single images, at batch size 1, say whether the promise is kept.

    Example: [bold]offramp bench runs/demo --batch 1,64[/]
    """
    import torch

    from offramp.runs import RunFolder

    sizes = _sizes(batch)
    wanted = [_engine(part) for part in engine.split(",")] if engine else [(None, None)]
    folder = RunFolder(run).check()
    points = [folder.point(point, engine=name, precision=kind)[0] for name, kind in wanted]
    if threads is not None:
        torch.set_num_threads(threads)
    options = {
        "batch": ",".join(str(size) for size in sizes),
        "images": images,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "static": static,
    }
    if len(points) == 1:
        result = bench_run(
            folder,
            point=points[0],
            sizes=sizes,
            images=images,
            rounds=rounds,
            statics=static.split(",") if static else (),
            memory=memory,
            progress=bars(as_json),
        )
    else:
        found = [_alone(folder.path, name, options, memory=memory) for name in points]
        result = found[0] | {"results": [entry["results"][0] for entry in found]}
        _write(folder, result)
    if as_json:
        emit(result)
        return
    for entry in result["results"]:
        show(bench_table(entry), *statics_lines(entry), *verdict_lines(entry))
    hardware = result["results"][0]["environment"]["hardware"]
    show(
        f"{hardware['cpu']}, {hardware['threads']} threads, thread pools of ONNX Runtime not "
        f"spinning; written: {folder.path / BENCHMARK}"
    )
    typer.echo(json.dumps(_summary(result)))


def bench_run(
    run: "RunFolder",
    *,
    point: str,
    sizes: Sequence[int],
    images: int,
    rounds: int,
    statics: Sequence[str] = (),
    memory: bool = False,
    progress: bool,
) -> dict[str, Any]:
    """Measure one point on its engine and write ``benchmark.json``.

    ``{"point": name, "results": [result], "latency": {batch size: cost table}}``
    """
    from offramp.reduced_run import reduced_run
    from offramp.runtime import latency_table

    name, chosen = run.point(point)
    timed = reduced_run(run, chosen.reducer)
    chosen.check(timed.model.fingerprint(), chosen.engine, chosen.precision)
    pictures = run.images("test", images)
    if max(sizes) > len(pictures):
        raise OfframpError(
            f"batch size {max(sizes)} needs as many images, but there are {len(pictures)} "
            "(see --images)"
        )
    measured = measure(
        timed, pictures, sizes, rounds, progress=progress, point=chosen, statics=statics
    )
    measured = measured.model_copy(update={"point": name, **_accuracy(run, name)})
    if memory:
        measured = measured.model_copy(update=_memory(run, name, max(sizes)))
    options = run.engine_options(chosen.engine, chosen.precision)
    tables = latency_table(timed.model, pictures, sizes, engine=chosen.engine, options=options)
    result = {
        "point": name,
        "results": [measured.model_dump(mode="json")],
        "latency": {str(size): table.model_dump(mode="json") for size, table in tables.items()},
    }
    _write(run, result)
    return result


def measure(
    run: "RunFolder",
    images: "Tensor",
    sizes: Sequence[int],
    rounds: int,
    *,
    progress: bool,
    statics: Sequence[str] = (),
    **setting: Any,
) -> "BenchResult":
    """Benchmark one setting (``point=``, or ``policy=`` and ``active=``) at every batch size."""
    from rich.console import Console
    from rich.progress import Progress

    from offramp.runtime import bench as time_model

    point = setting.pop("point", None)
    engine = point.engine if point is not None else "torch"
    options = run.engine_options(engine, None if point is None else point.precision)
    plain = _statics(statics, engine, options.precision, images)
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("compiling", total=None)
        return time_model(
            run.model,
            point,
            images,
            sizes,
            rounds=rounds,
            costs=run.costs,
            engine=engine,
            options=options,
            statics=plain,
            advance=lambda stage: bar.update(task, description=stage),
            **setting,
        )


def bench_table(entry: dict[str, Any]) -> Any:
    """One engine: milliseconds per image and the speed-ups, by batch size."""
    from offramp.report.tables import percent, times

    rows = []
    for found in entry["batches"]:
        rows.append(
            (
                str(found["batch_size"]),
                f"{found['full_ms']:.3f}",
                f"{found['dynamic_ms']:.3f}",
                f"{found['dynamic_p95_ms']:.3f}",
                times(found["speedup_layers"]),
                times(found["speedup_macs"]),
                f"[bold]{times(found['speedup_time'])}[/]",
                times(found["speedup_ideal"]),
                f"{found['realised']:.2f}",
            )
        )
    columns = ["batch", "full", "point", "p95", "layers", "MACs", "time", "ideal", "reached"]
    title = f"{entry['point']} on {entry['engine']}, {entry['precision']}; ms per image"
    if entry["accuracy"] is not None:
        shown = percent if entry["metric"] == "accuracy" else "{:.3f}".format
        title += (
            f"; {entry['metric']} {shown(entry['accuracy'])}, full model "
            f"{shown(entry['full_accuracy'])} ({entry['accuracy_on']})"
        )
    if entry["memory_mib"] is not None:
        title += (
            f"; peak memory {entry['memory_mib']:.0f} MiB, full {entry['full_memory_mib']:.0f} MiB"
        )
    return table(title, columns, rows)


def statics_lines(entry: dict[str, Any]) -> list[str]:
    """The plain models that were timed beside it, one line per batch size and model."""
    from offramp.report.tables import times

    return [
        f"{name}: {plain['ms']:.3f} ms at batch {found['batch_size']}, "
        f"{times(1 / plain['ratio'])} the speed of the full model"
        for found in entry["batches"]
        for name, plain in found["statics"].items()
    ]


def verdict_lines(entry: dict[str, Any]) -> list[str]:
    """Whether a promised latency was kept, where one was promised."""
    verdict = entry["verdict"]
    return [] if verdict is None else [f"[bold]{entry['point']}[/]: {verdict['sentence']}."]


def _alone(run: Path, point: str, options: dict[str, Any], *, memory: bool) -> dict[str, Any]:
    """Bench one point in a process of its own, so that engines do not disturb each other."""
    command = [sys.executable, "-m", "offramp.cli.main", "bench", str(run), "--point", point]
    command += ["--json", *(["--memory"] if memory else [])]
    for key, value in options.items():
        command += [f"--{key}", str(value)] if value is not None else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise OfframpError(f"timing {point} failed (its message stands above)")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _accuracy(run: "RunFolder", point: str) -> dict[str, Any]:
    """The task's metric from ``evaluation.json``, where the point was evaluated."""
    evaluation = run.evaluation()
    found = (evaluation or {}).get("points", {}).get(point)
    if evaluation is None or found is None:
        return {}
    return {
        "metric": run.model.task.metric,
        "accuracy": found["accuracy"],
        "full_accuracy": found["full_accuracy"],
        "accuracy_on": f"{found['n']} {evaluation['split']} images of {evaluation['dataset']}",
    }


def _memory(run: "RunFolder", point: str, batch_size: int) -> dict[str, float]:
    import torch

    from offramp.footprint import peak_memories

    threads = torch.get_num_threads()
    dynamic, full = peak_memories(run, point, batch_size, threads=threads)
    return {"memory_mib": dynamic, "full_memory_mib": full}


def _statics(
    names: Sequence[str], engine: str, precision: str | None, images: "Tensor"
) -> dict[str, Any]:
    """Plain models by timm name, each taking the images at the size it was made for."""
    from torch.nn.functional import interpolate

    from offramp.backbones import build_backbone
    from offramp.chains import chain
    from offramp.runtime.static import static_program

    def resized(run: Any, size: tuple[int, int]) -> Any:
        cache: dict[int, Tensor] = {}  # resizing is not the model's time: done once per batch

        def call(batch: "Tensor") -> Any:
            key = batch.data_ptr()
            if key not in cache:
                cache[key] = interpolate(batch, size, mode="bilinear", antialias=True)
            return run(cache[key])

        return call

    found = {}
    for name in names:
        model = build_backbone(name)
        size = chain(model).image_size
        found[name] = resized(static_program(model, size, engine, precision), size)
    return found


def _summary(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The few numbers of every engine and batch size, for machines."""
    keys = ("batch_size", "full_ms", "dynamic_ms", "speedup_time", "speedup_macs", "realised")
    return [
        {"engine": entry["engine"], "precision": entry["precision"], "point": entry["point"]}
        | {key: found[key] for key in keys}
        for entry in result["results"]
        for found in entry["batches"]
    ]


def _write(run: "RunFolder", result: dict[str, Any]) -> None:
    from offramp.files import write_json

    write_json(run.path / BENCHMARK, result)


def _engine(text: str) -> tuple[str, str | None]:
    """``openvino:bf16`` → name and precision."""
    from offramp.runtime import ENGINES, EngineOptions

    name, _, precision = text.strip().partition(":")
    ENGINES.get(name)(EngineOptions(precision=precision or None))
    return name, precision or None


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise OfframpError(f"--batch {text!r}: use whole numbers with commas, such as 1,8,32")
    return list(dict.fromkeys(sizes))
