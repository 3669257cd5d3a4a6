"""Errors made for the person at the keyboard."""

import difflib
from collections.abc import Iterable


class OfframpError(Exception):
    """One clear sentence that names the file, key or value and what would be accepted."""


def suggest(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is no known ``kind``, with close matches and the accepted names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    listed = ", ".join(names) if len(names) <= 24 else f"{', '.join(names[:24])}, …"
    return f"unknown {kind} {name!r} ({hint}known: {listed})"
