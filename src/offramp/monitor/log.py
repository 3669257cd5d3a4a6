"""Live answers as a file of lines: written while serving, read by ``offramp monitor``."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import OfframpError
from offramp.monitor.reference import Sight, sight_of
from offramp.runtime.prediction import Prediction

JSONL, CSV = (".jsonl", ".ndjson"), (".csv",)
COLUMNS = ("exit", "confidence", "cut")


def append_live(path: Path | str, prediction: Prediction) -> None:
    """Add a prediction's samples to a JSONL file, one line each: exit, confidence, cut.

    All lines go out in one write, so that several processes may share a file.
    """
    sight = sight_of(prediction)
    append_lines(path, sight)


def append_lines(path: Path | str, sight: Sight) -> None:
    """Add samples to a JSONL file."""
    rows = zip(sight.exits.tolist(), sight.readings.tolist(), sight.cut.tolist(), strict=True)
    lines = [
        json.dumps({"exit": k, "confidence": round(value, 7), **({"cut": True} if cut else {})})
        for k, value, cut in rows
    ]
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def read_live(path: Path | str, exit_names: Sequence[str], *, start: int = 0) -> tuple[Sight, int]:
    """Samples of a JSONL or CSV file from line ``start`` on, and how many there are in all.

    Every line gives ``exit`` (a number, counted from 0 among all exits, or a name), ``confidence``
    (in regression the value), and where deadlines are used ``cut``. A last line that is not
    complete yet is left for the next time.

    Raises:
        OfframpError: naming the line, for anything else; for fewer lines than ``start``.
    """
    path = Path(path)
    rows = list(_rows(path, exit_names))
    if len(rows) < start:
        raise OfframpError(
            f"{path}: {len(rows)} samples, but {start} were read from it before: it is another "
            "file, so give another --state"
        )
    exits, readings, cut = zip(*rows[start:], strict=True) if rows[start:] else ((), (), ())
    sight = Sight(np.array(exits, np.int64), np.array(readings, np.float64), np.array(cut, bool))
    return sight, len(rows)


def _rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, float, bool]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OfframpError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise OfframpError(f"{path}: not a text file") from None
    complete = text.endswith("\n")
    lines = text.splitlines()
    read = _csv_fields(path, lines) if path.suffix in CSV else _json_fields(path, lines)
    for number, fields in read:
        try:
            yield _row(fields, names)
        except (OfframpError, KeyError, TypeError, ValueError) as error:
            if number == len(lines) and not complete:
                return  # still being written
            why = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            raise OfframpError(
                f"{path}, line {number}: {why} (a line gives {', '.join(COLUMNS[:2])}, "
                f"and perhaps {COLUMNS[2]})"
            ) from None


def _json_fields(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, Any]]:
    if path.suffix not in JSONL:
        known = ", ".join((*JSONL, *CSV))
        raise OfframpError(f"{path}: neither a folder of images nor a log ({known})")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line


def _csv_fields(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, Any]]:
    table = csv.DictReader(lines)
    missing = set(COLUMNS[:2]) - set(table.fieldnames or ())
    if missing:
        raise OfframpError(f"{path}: the first line names no column {sorted(missing)[0]!r}")
    for fields in table:
        yield table.line_num, fields


def _row(given: Any, names: Sequence[str]) -> tuple[int, float, bool]:
    fields = json.loads(given) if isinstance(given, str) else given
    if not isinstance(fields, dict):
        raise OfframpError("not an object")
    value = float(fields["confidence"])
    if not math.isfinite(value):
        raise OfframpError(f"confidence {value} is no finite number")
    return _exit(fields["exit"], names), value, _flag(fields.get("cut"))


def _exit(given: Any, names: Sequence[str]) -> int:
    if isinstance(given, str) and given in names:
        return names.index(given)
    number = None if isinstance(given, bool) else int(given)
    if number is None or number != float(given) or not 0 <= number < len(names):
        raise OfframpError(f"exit {given!r} does not exist (use 0…{len(names) - 1}, or a name)")
    return number


def _flag(given: Any) -> bool:
    if isinstance(given, str):
        word = given.strip().lower()
        if word not in ("", "0", "1", "true", "false"):
            raise OfframpError(f"cut {given!r} is neither true nor false")
        return word in ("1", "true")
    return bool(given)
