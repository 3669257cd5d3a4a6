"""``offramp``: the entry point and its commands."""

from collections.abc import Callable
from typing import Annotated

import typer

from offramp.cli.bench import bench
from offramp.cli.calibrate import calibrate
from offramp.cli.cascade import cascade
from offramp.cli.compare import compare
from offramp.cli.demo import demo
from offramp.cli.errors import Commands
from offramp.cli.eval import evaluate
from offramp.cli.explain import explain
from offramp.cli.export import export
from offramp.cli.frontier import frontier
from offramp.cli.list import list_entries
from offramp.cli.monitor import monitor
from offramp.cli.predict import predict
from offramp.cli.report import report
from offramp.cli.train import train
from offramp.version import __version__

app = typer.Typer(
    name="offramp",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"offramp {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Transformers that stop computing when they already know.

    Train a model with early exits, calibrate it to a promise, measure what it saves.
    Start with [bold]offramp demo[/]: the whole road in about four minutes.
    """


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "eval": evaluate,
    "calibrate": calibrate,
    "bench": bench,
    "compare": compare,
    "export": export,
    "frontier": frontier,
    "cascade": cascade,
    "predict": predict,
    "explain": explain,
    "monitor": monitor,
    "report": report,
    "list": list_entries,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def run() -> None:
    """Run the command line.

    Exit code 0, 1 for bad input, 2 for misuse, 3 for unfinished training, 4 when ``monitor`` found
    drift, 130 when interrupted.
    """
    app()


if __name__ == "__main__":
    run()
