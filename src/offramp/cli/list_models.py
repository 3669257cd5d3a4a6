"""``offramp list models``: names and families of them all, and what a few of them cost."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from offramp.cli.errors import escaped
from offramp.cli.terminal import bars, emit, show, table
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.catalogue import ModelFacts

Entries = list[tuple[str, str]]
FEW = 20
"""So many models are described in full without being asked to; each takes about half a second."""


def models() -> Entries:
    """Names and families of the models that can be given exits."""
    from offramp.catalogue import supported_models

    return sorted(supported_models().items())


def list_models(found: Entries, *, details: bool, json: bool) -> None:
    """Names and families of models, with ``details`` what each costs and where its exits stand."""
    title = f"{len(found)} models"
    if not details:
        if json:
            emit([{"name": name, "family": family} for name, family in found])
        else:
            show(table(title, ["name", "family<"], found))
        return
    described = [(name, family, facts(name)) for name, family in watched(found, json)]
    if json:
        emit([as_document(*model) for model in described])
        return
    columns = ["name", "family<", "px", "params", "MACs", "blocks", "exits<", "weights<"]
    made = table(
        f"{title} and the blocks their exits follow by default",
        columns,
        (as_row(*model) for model in described),
    )
    made.padding = (0, 1, 0, 0)
    made.columns[0].overflow = "fold"
    for column in made.columns[1:]:
        column.no_wrap = True
    show(made)
    for name, _, known in described:
        if isinstance(known, OfframpError):
            show(escaped(f"{name}: {known}"))


def facts(name: str) -> "ModelFacts | OfframpError":
    """A model's facts, or why this member of its family has none."""
    from offramp.catalogue import model_facts

    try:
        return model_facts(name)
    except OfframpError as error:
        return error


def watched(found: Entries, json: bool) -> Iterable[tuple[str, str]]:
    """The entries, behind a progress bar for people."""
    from rich.console import Console
    from rich.progress import track

    return track(
        found, "counting", console=Console(stderr=True), transient=True, disable=not bars(json)
    )


def as_document(name: str, family: str, known: "ModelFacts | OfframpError") -> dict[str, Any]:
    if isinstance(known, OfframpError):
        return {"name": name, "family": family, "error": str(known)}
    return {"name": name, "family": family, **known._asdict()}


def as_row(name: str, family: str, known: "ModelFacts | OfframpError") -> list[str]:
    if isinstance(known, OfframpError):
        return [name, family, *["–"] * 6]
    height, width = known.image_size
    return [
        name,
        family,
        f"{height}" if height == width else f"{height}×{width}",
        f"{brief(known.parameters / 1e6)} M",
        f"{brief(known.macs / 1e9)} G",
        f"{known.blocks}",
        spans(known.default_exits),
        "local" if known.weights_local else "–",
    ]


def brief(value: float) -> str:
    """Three digits or more: 4.90, 17.6, 304."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs drawn together: 4, 5, 6, 9 → ``4–6, 9``."""
    ordered = list(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    ends = [a for a, b in pairwise([*ordered, -1]) if b != a + 1]
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))
