"""What the commands print: results on stdout, everything else on stderr."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]


def emit(value: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """A line of rich markup on stderr, never broken into several."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def show(*parts: Any) -> None:
    """Tables and lines of rich markup on stdout; lines wrap at words, tables fit the terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str) and not console.is_terminal)


def bars(as_json: bool) -> bool:
    """Whether to show progress: to people only."""
    return not as_json and sys.stderr.isatty()


@contextmanager
def working(text: str, as_json: bool) -> Iterator[None]:
    """A spinner on stderr while something short of a progress bar runs."""
    if not bars(as_json):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    """A table; columns are set right except the first one and those that end in ``<``."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        left = i == 0 or column.endswith("<")
        made.add_column(column.rstrip("<"), justify="left" if left else "right")
    for row in rows:
        made.add_row(*row)
    return made


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
