"""``offramp bench``: measured time next to the unmodified backbone on the same engine."""

from collections.abc import Sequence
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
    engine: Annotated[str, typer.Option(help="Engines, with commas.")] = "torch",
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8,32",
    point: Annotated[
        str | None, typer.Option(help="Operating point; the newest when omitted.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Different test images per round.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; medians are shown.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Measured time next to the unmodified backbone.

    Both take turns on real test images. Writes RUN/benchmark.json.

    Example: [bold]offramp bench runs/demo --batch 1,64[/]
    """
    from offramp.runs import RunFolder
    from offramp.runtime import ENGINES

    sizes = _sizes(batch)
    engines = [name.strip() for name in engine.split(",")]
    for name in engines:
        ENGINES.get(name)
    folder = RunFolder(run).check()
    result = bench_run(
        folder,
        point=point,
        engines=engines,
        sizes=sizes,
        images=images,
        rounds=rounds,
        progress=bars(as_json),
    )
    if as_json:
        emit(result)
        return
    for entry in result["results"]:
        show(bench_table(entry, result["point"]))
    hardware = result["results"][0]["environment"]["hardware"]
    show(f"{hardware['cpu']}, {hardware['threads']} threads; written: {folder.path / BENCHMARK}")


def bench_run(
    run: "RunFolder",
    *,
    point: str | None,
    engines: Sequence[str],
    sizes: Sequence[int],
    images: int,
    rounds: int,
    progress: bool,
) -> dict[str, Any]:
    """Measure and write ``benchmark.json``: ``{"point": name, "results": [one per engine]}``."""
    from offramp.cli.images import real_images
    from offramp.costs import latency_table
    from offramp.files import write_json

    name, chosen = run.point(point)
    chosen.check(run.model.fingerprint())
    pictures = real_images(run, "test", images)
    if max(sizes) > len(pictures):
        raise OfframpError(
            f"batch size {max(sizes)} needs as many images, but there are {len(pictures)} "
            "(see --images)"
        )
    results = [
        measure(run, pictures, sizes, rounds, progress=progress, point=chosen, engine=engine)
        for engine in engines
    ]
    tables = latency_table(run.model, pictures, sizes)
    result = {
        "point": name,
        "results": [entry.model_dump(mode="json") for entry in results],
        "latency": {str(size): table.model_dump(mode="json") for size, table in tables.items()},
    }
    write_json(run.path / BENCHMARK, result)
    return result


def measure(
    run: "RunFolder",
    images: "Tensor",
    sizes: Sequence[int],
    rounds: int,
    *,
    progress: bool,
    **setting: Any,
) -> "BenchResult":
    """Benchmark one setting (``point=``, or ``policy=`` and ``active=``) at every batch size."""
    from rich.console import Console
    from rich.progress import Progress

    from offramp.runtime import bench as time_model

    parts = []
    point = setting.pop("point", None)
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task = bar.add_task("timing", total=len(sizes))
        for size in sizes:
            bar.update(task, description=f"timing batch {size}")
            parts.append(
                time_model(
                    run.model, point, images, (size,), rounds=rounds, costs=run.costs, **setting
                )
            )
            bar.advance(task)
    return parts[0].model_copy(update={"batches": [part.batches[0] for part in parts]})


def bench_table(entry: dict[str, Any], point: str) -> Any:
    """One engine: milliseconds per image and the three speed-ups, by batch size."""
    from offramp.report.tables import times

    rows = [
        (
            str(found["batch_size"]),
            f"{found['full_ms']:.3f}",
            f"{found['dynamic_ms']:.3f}",
            times(found["speedup_layers"]),
            times(found["speedup_macs"]),
            f"[bold]{times(found['speedup_time'])}[/]",
            f"{100 * (found['no_exit_overhead'] - 1):+.1f} %",
        )
        for found in entry["batches"]
    ]
    columns = ["batch", "full, ms", "point, ms", "layers", "MACs", "time", "no-exit overhead"]
    return table(f"{point} on {entry['engine']}, per image", columns, rows)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise OfframpError(f"--batch {text!r}: use whole numbers with commas, such as 1,8,32")
    return list(dict.fromkeys(sizes))
