"""``offramp train``: a recipe file becomes a run folder."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from offramp.cli.terminal import AsJson, bars, duration, emit, show, table
from offramp.errors import OfframpError

UNFINISHED = 3


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="Recipe file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it, with dots: data.limit=500"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop with a checkpoint after so long (exit code 3)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model by a recipe, into RUNS/NAME.

    Example: [bold]offramp train recipes/vit_tiny_count_blobs_24_joint_linear.yaml name=try[/]
    """
    from offramp.runs import train_run
    from offramp.training.run_config import load_run_config
    from offramp.training.stage_run import OutOfTimeError

    config = load_run_config(recipe, overrides or [])
    folder = runs / config.name
    if config.name == ".." or folder.parent != runs:
        raise OfframpError(f"name = {config.name!r}: a plain name, the run goes to {runs}/NAME")
    try:
        run = train_run(config, folder, resume=resume, minutes=minutes, progress=bars(as_json))
    except OutOfTimeError:
        if as_json:
            emit({"run": str(folder), "finished": False})
        else:
            show(f"{folder}: stopped after {minutes:g} minutes; go on with [bold]--resume[/]")
        raise typer.Exit(UNFINISHED) from None
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, the first one speaks
    last = run.metrics()[-1] if run.metrics() else {}
    if as_json:
        emit({"run": str(folder), "finished": True, "last": last})
        return
    if last:
        show(validation_table(last))
    seconds = f" in {duration(last['seconds'])}" if last else ""
    show(f"trained{seconds}: [bold]{folder}[/]", f"next: offramp eval {folder}")


def validation_table(entry: dict[str, Any]) -> Any:
    """Accuracy of every exit on the validation split, from a line of ``metrics.jsonl``."""
    from offramp.report.tables import percent

    title = f"Validation after stage {entry['stage']}"
    rows = [(name, percent(value)) for name, value in entry["validation"].items()]
    return table(title, ["exit", "accuracy"], rows)
