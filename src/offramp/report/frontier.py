"""Static models and a dynamic one: accuracy against milliseconds, as a table and a plot."""

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pydantic import ValidationError
from rich import box
from rich.table import Table

from offramp.errors import OfframpError
from offramp.files import read_json
from offramp.frontier.result import Entry, Frontier
from offramp.report.style import Look, figure, look, note, save_png, styled
from offramp.report.tables import percent

PANEL = (5.2, 4.4)  # inches
FONT = 7.5  # of the names, points
# where a name may stand beside its mark: (points to the right, points up, alignment)
PLACES = (
    (7, 0, "left"),
    (-7, 0, "right"),
    (0, 10, "center"),
    (0, -10, "center"),
    (6, 9, "left"),
    (6, -9, "left"),
    (-6, 9, "right"),
    (-6, -9, "right"),
)


def read_frontier(path: Path, fingerprint: str) -> Frontier | None:
    """What ``offramp frontier`` wrote about a model; None when nothing, or about other weights.

    Raises:
        OfframpError: when the file is not what it writes.
    """
    if not path.is_file():
        return None
    try:
        found = Frontier.model_validate(read_json(path))
    except ValidationError:
        raise OfframpError(f"{path}: no result of offramp frontier; run it again") from None
    return found if found.fingerprint == fingerprint else None


def frontier_table(found: Frontier, engine: str) -> Table:
    """An engine's models, the fastest first; static ones that no other beats in both are bold."""
    task = main_task(found)
    about = f"; accuracy on {task}" if task else ""
    title = f"{engine}, batch {found.batch_size}, {threads_used(found)}{about}"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    heads = ("model", "px", "G MACs", "ms per image", "quartiles", "accuracy")
    for number, head in enumerate(heads):
        made.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    unbeaten = found.best(engine, task) if task else []
    for entry in found.on(engine):
        low, high = entry.quartiles
        style = "bold dark_orange3" if entry.kind == "dynamic" else ""
        made.add_row(
            entry.name,
            "×".join(map(str, dict.fromkeys(entry.image_size))),
            f"{entry.macs / 1e9:.3f}",
            f"{entry.ms:.2f}",
            f"{low:.2f}…{high:.2f}",
            percent(entry.accuracy if entry.task == task else None),
            style="bold" if entry in unbeaten else style,
        )
    return made


def save_frontier_plot(found: Frontier, path: Path) -> Path:
    """Draw and write a PNG."""
    with styled("frontier"):
        return save_png(plot_frontier(found), path)


def plot_frontier(found: Frontier) -> Figure:
    """One panel per engine; models of unknown accuracy are marks on the time axis."""
    task, colours = main_task(found), look(1)
    width, height = PANEL
    made, axes = figure(
        width * len(found.engines), height, len(found.engines), sharey=True, pad=0.1
    )
    shown = [e.accuracy for e in found.entries if e.accuracy is not None and e.task == task]
    for engine, axis in zip(found.engines, axes, strict=True):
        entries = found.on(engine)
        axis.set_title(engine)
        axis.set_xlabel(f"milliseconds per image, batch {found.batch_size}, {threads_used(found)}")
        axis.grid(axis="y")
        _time_axis(axis, entries)
        if shown:
            room = max(max(shown) - min(shown), 1.0)
            axis.set_ylim(min(shown) - 0.14 * room, max(shown) + 0.1 * room)
        _draw(axis, found, engine, task, colours)
    axes[0].set_ylabel(f"top-1 on {task}, %" if task else "no accuracy is known")
    return made


def main_task(found: Frontier) -> str | None:
    """What shown accuracies are on: the dynamic model's task, else what most were tested on."""
    dynamic = [entry.task for entry in found.entries if entry.kind == "dynamic"]
    known = dynamic or [entry.task for entry in found.entries if entry.task is not None]
    return max(known, key=known.count) if known else None


def _draw(axis: Any, found: Frontier, engine: str, task: str | None, colours: Look) -> None:
    entries = [entry for entry in found.on(engine) if _known(entry, task)]
    best = found.best(engine, task) if task else []
    axis.plot(
        [e.ms for e in best], [e.accuracy for e in best], color=colours.rule, lw=1.4, zorder=2
    )
    for entry in entries:
        dynamic, unbeaten = entry.kind == "dynamic", entry in best
        colour = colours.accent if dynamic else colours.ink if unbeaten else colours.muted
        axis.hlines(entry.accuracy, *entry.quartiles, color=colour, lw=1, zorder=3)
        face = colour if dynamic or unbeaten else colours.paper
        size = 9.5 if dynamic else 6
        axis.plot(entry.ms, entry.accuracy, "o", ms=size, mfc=face, mec=colour, mew=1.2, zorder=4)
    _name(axis, entries, colours)
    for entry in found.on(engine):
        if not _known(entry, task):
            base = axis.get_xaxis_transform()
            axis.plot(entry.ms, 0, "|", ms=10, color=colours.muted, transform=base, clip_on=False)
            axis.annotate(
                entry.name,
                (entry.ms, 0.03),
                xycoords=base,
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=FONT,
                color=colours.muted,
            )


def _name(axis: Any, entries: Sequence[Entry], colours: Look) -> None:
    """Write every name where it covers no mark and no other name, the dynamic model's first."""
    marks = [_points(axis, entry) for entry in entries]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    order = sorted(range(len(entries)), key=lambda i: entries[i].kind != "dynamic")
    for i in order:
        entry, own = entries[i], taken[i]
        boxes = [(_box(marks[i], place, entry.name), place) for place in PLACES]
        others = [box for box in taken if box is not own]
        free, place = min(boxes, key=lambda b: (_overlaps(axis, b[0], others), PLACES.index(b[1])))
        taken.append(free)
        dynamic = entry.kind == "dynamic"
        note(
            axis,
            entry.name,
            (entry.ms, entry.accuracy or 0.0),
            offset=place[:2],
            ha=place[2],
            color=colours.accent if dynamic else colours.muted,
            fontsize=FONT + (1.5 if dynamic else 0),
            fontweight="bold" if dynamic else "normal",
        )


def _points(axis: Any, entry: Entry) -> tuple[float, float]:
    """Where a mark lies in its panel, in points; about, for the layout is made later."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    width, height = (72 * (side - 0.9) for side in PANEL)
    across = (log10(entry.ms) - log10(left)) / (log10(right) - log10(left))
    return width * across, height * ((entry.accuracy or low) - low) / (high - low)


def _box(
    mark: tuple[float, float], place: tuple[int, int, str], name: str
) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of a name beside its mark, in points."""
    length = 0.56 * FONT * len(name)
    x, y = mark[0] + place[0], mark[1] + place[1]
    x -= {"left": 0.0, "center": length / 2, "right": length}[place[2]]
    return x, y - 0.7 * FONT, x + length, y + 0.7 * FONT


def _overlaps(axis: Any, box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    """Covered area in square points, and what sticks out of the panel."""
    left, bottom, right, top = box
    covered = 0.0
    for a, b, c, d in others:
        covered += max(0.0, min(right, c) - max(left, a)) * max(0.0, min(top, d) - max(bottom, b))
    width = 72 * (PANEL[0] - 0.9)
    return covered + FONT * (max(0.0, -left) + max(0.0, right - width))


def _time_axis(axis: Any, entries: Sequence[Entry]) -> None:
    axis.set_xscale("log")
    times = [entry.ms for entry in entries]
    axis.set_xlim(0.75 * min(times), 1.35 * max(times))
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _known(entry: Entry, task: str | None) -> bool:
    return entry.accuracy is not None and entry.task == task


def threads_used(found: Frontier) -> str:
    """As in "1 thread"."""
    count = found.environment["hardware"]["threads"]
    return f"{count} thread{'s' if count != 1 else ''}"
