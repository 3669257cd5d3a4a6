"""``offramp monitor``: does live data still look like what the promise was made on?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.terminal import AsJson, Run, bars, emit, show, table, working
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.calibration import OperatingPoint
    from offramp.monitor import Verdict, Watch
    from offramp.runs import RunFolder
    from offramp.runtime import Prediction

DRIFT = 4
"""Exit code when drift was found; 3 is unfinished training."""
BATCH = 32


def monitor(
    run: Run,
    point: Annotated[str, typer.Argument(metavar="POINT", help="Operating point that answers.")],
    live: Annotated[
        Path,
        typer.Argument(
            metavar="LIVE",
            help="Live answers, .jsonl or .csv with exit, confidence and perhaps cut (see offramp "
            "predict --log); or a folder of images, which the point then answers.",
        ),
    ],
    window: Annotated[int, typer.Option(help="Samples between two looks.")] = 256,
    alpha: Annotated[float, typer.Option(help="Probability of ever raising a false alarm.")] = 0.01,
    split: Annotated[
        str, typer.Option(help="Split whose records are the reference.")
    ] = "calibration",
    state: Annotated[
        Path | None,
        typer.Option(help="File to remember by: only lines that are new in LIVE are read."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say when an operating point's promise may no longer hold.

    Compares where live samples leave, and how sure they are, with what the records predict. All
    looks together raise a false alarm with probability alpha at most. Ends with code 4 when drift
    was found, 0 when not.

    Example: [bold]offramp monitor runs/demo chosen live.jsonl[/]
    """
    from offramp.monitor import Watch
    from offramp.reduced_run import reduced_run
    from offramp.runs import RunFolder

    _, chosen = RunFolder(run).check().point(point)
    folder = reduced_run(RunFolder(run), chosen.reducer)
    if live.is_dir() and state is not None:
        raise OfframpError("--state goes with a log; a folder of images is answered as a whole")
    if not live.exists():
        raise OfframpError(f"{live}: no such file or folder")
    records = folder.records(
        split, engine=chosen.engine, precision=_asked(folder, chosen), progress=bars(as_json)
    )
    watch = Watch(chosen, records, window=window, alpha=alpha)
    if state is not None and state.is_file():
        watch.resume(state)
    if live.is_dir():
        with working("answering", as_json):
            for prediction in _answers(folder, chosen, live):
                watch.update(prediction)
    else:
        _take_in(watch, live)
    if state is not None:
        watch.save(state)
    _show(watch.verdict, as_json)
    if watch.verdict.drift:
        raise typer.Exit(DRIFT)


def _take_in(watch: "Watch", live: Path) -> None:
    from offramp.monitor import read_live

    names = watch.point.exit_names
    sight, watch.state.position = read_live(live, names, start=watch.state.position)
    try:
        watch.add(sight)
    except OfframpError as error:
        raise OfframpError(f"{live}: {error}") from None


def _asked(run: "RunFolder", point: "OperatingPoint") -> str | None:
    """The precision to ask for, to get the point's own records."""
    return run.engine_options(point.engine, point.precision).precision


def _answers(run: "RunFolder", point: "OperatingPoint", folder: Path) -> "Iterator[Prediction]":
    import torch

    from offramp.data import eval_transform, read_image
    from offramp.data.images import SUFFIXES
    from offramp.runtime import compile_runner

    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise OfframpError(f"{folder}: no images ({', '.join(SUFFIXES)})")
    options = run.engine_options(point.engine, point.precision)
    runner = compile_runner(run.model, point, options=options)
    transform = eval_transform(run.model.preprocessing)
    for start in range(0, len(files), BATCH):
        images = [transform(read_image(path)) for path in files[start : start + BATCH]]
        yield runner(torch.stack(images))


def _show(verdict: "Verdict", as_json: bool) -> None:
    if as_json:
        emit(verdict.model_dump(mode="json"))
        return
    from offramp.report.tables import percent

    if verdict.exit_share is not None:
        rows = [
            (name, percent(100 * live, 1), percent(100 * expected, 1))
            for name, live, expected in zip(
                verdict.exit_names, verdict.exit_share, verdict.expected_share, strict=True
            )
            if live or expected
        ]
        show(table("Samples leaving", ["exit", "live", "expected"], rows))
        show(
            f"mean confidence {verdict.confidence:.3f}, expected "
            f"{verdict.expected_confidence:.3f}; cost {verdict.cost_share:.3f} of the full "
            f"model's, expected {verdict.expected_cost_share:.3f}"
        )
    show(f"[bold]{verdict.sentence}[/].")
