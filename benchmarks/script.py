"""What benchmarks share besides what they measure: options, result file, failures."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offramp.errors import OfframpError
from offramp.files import write_json

RESULTS = Path("benchmarks/results")
Result = dict[str, Any]


def parser_for(about: str | None, name: str) -> argparse.ArgumentParser:
    """Options of a script, told by its docstring's first line; results go to ``name``.json."""
    made = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    made.add_argument("--results-file", type=Path, default=RESULTS / f"{name}.json")
    return made


def timing(parser: argparse.ArgumentParser, batch: str) -> argparse.ArgumentParser:
    """Adds what every timing of engines asks for; ``batch`` are the sizes by default."""
    parser.add_argument("--engine", default="torch,openvino", help="engines, with commas")
    parser.add_argument("--batch", default=batch, help=f"batch sizes, with commas ({batch})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    return parser


def carry_out(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Result],
    show: Callable[[Result], None] | None = None,
) -> None:
    """Measure, write, show; a failure is one sentence on standard error, and nothing is written."""
    asked = parser.parse_args()
    try:
        found = measure(asked)
    except OfframpError as error:
        sys.exit(f"{error}")
    write_json(asked.results_file, found)
    if show is not None:
        show(found)


def commit() -> str:
    """Commit the numbers belong to, marked when the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def told_without(words: list[str], *paths: str | Path | None) -> str:
    """How a result came about, with PATH instead of places on somebody's machine."""
    script, *rest = words
    places = {str(path) for path in paths}
    told = ["PATH" if word in places else word for word in rest]
    return " ".join(["python", f"benchmarks/{Path(script).name}", *told])
