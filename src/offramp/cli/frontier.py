"""``offramp frontier``: static models timed here, and whether one already does what a run does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.terminal import AsJson, bars, emit, show
from offramp.errors import OfframpError

FRONTIER = "frontier.json"


def frontier(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="timm names, patterns of them, or run folders; a short list when omitted.",
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run whose dynamic model is placed among them.")
    ] = None,
    point: Annotated[
        str | None, typer.Option(help="Its operating point; the newest when omitted.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engines with commas, a precision after a colon where it is not the engine's "
            "default: torch,openvino,openvino:bf16; the point's own, else torch."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; torch's default when omitted.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images per model and round.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; medians are shown.")] = 7,
    data: Annotated[
        str | None,
        typer.Option(help="Evaluate named models here instead of taking published accuracies."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that accuracies are measured on.")] = "test",
    out: Annotated[
        Path | None, typer.Option(help="FILE.json; the plot is written beside it as FILE.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Static models, accuracy against time.

    All take turns, each at its own input size. With --run it says whether one of them already
    does what the dynamic model does, and writes RUN/frontier.json.

    Example: [bold]offramp frontier levit_192 efficientnet_b2 --threads 1[/]
    """
    from offramp.data import open_dataset
    from offramp.files import write_json
    from offramp.frontier import DEFAULT_MODELS, measure_frontier
    from offramp.report.frontier import frontier_table, save_frontier_plot, threads_used
    from offramp.runs import RunFolder

    folder = RunFolder(run).check() if run else None
    if point is not None and folder is None:
        raise OfframpError("--point needs --run")
    if out is not None and out.suffix != ".json":
        raise OfframpError(f"--out {out}: give a file that ends in .json")
    written = _places(out, folder.path if folder else None)
    with _bar(as_json) as starting:
        found = measure_frontier(
            models or DEFAULT_MODELS,
            run=folder,
            point=point,
            data=open_dataset(data) if data else None,
            split=split,
            engines=[name.strip() for name in engine.split(",")] if engine else None,
            batch_size=batch,
            images=images,
            rounds=rounds,
            threads=threads,
            progress=bars(as_json),
            starting=starting,
        )
    if written:
        write_json(written[0], found.report())
        save_frontier_plot(found, written[1])
    if as_json:
        emit(found.report())
        return
    show(*(frontier_table(found, name) for name in found.engines))
    for source in dict.fromkeys(entry.source for entry in found.entries if entry.weights):
        show(f"published accuracies: {source}")
    for verdict in found.verdicts():
        show(f"[bold]{verdict.name}[/] {verdict.sentence}.")
    files = f"; written: {written[0]}, {written[1]}" if written else ""
    show(f"{found.environment['hardware']['cpu']}, {threads_used(found)}{files}")


def _places(out: Path | None, run: Path | None) -> tuple[Path, Path] | None:
    """Where the result and its plot go; None: nowhere."""
    if out is not None:
        return out, out.with_suffix(".png")
    return (run / FRONTIER, run / "plots" / "frontier.png") if run is not None else None


@contextmanager
def _bar(as_json: bool) -> Iterator[Callable[[int], Callable[[], None]]]:
    """A progress bar that appears when the turns start."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True), transient=True, disable=not bars(as_json)
    ) as progress:

        def starting(turns: int) -> Callable[[], None]:
            task = progress.add_task("timing", total=turns)
            return lambda: progress.advance(task)

        yield starting
