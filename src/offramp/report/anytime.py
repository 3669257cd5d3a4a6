"""Accuracy against budget, as tables and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pydantic import ValidationError
from rich import box
from rich.table import Table

from offramp.anytime import BUDGETS, Anytime, Curve, accuracy_at
from offramp.errors import OfframpError
from offramp.files import read_json
from offramp.report.style import Look, figure, look, note, save_png, styled
from offramp.tasks import Task, task_named

SHOWN = (0.25, 0.5, 0.75, 1.0)  # mean budgets in the table, over the unmodified backbone's cost
LINES = {"fixed": "-", "uniform": (0, (5, 1.5)), "bursty": (0, (1.2, 1.2))}


def read_anytime(path: Path, fingerprint: str) -> Anytime | None:
    """What ``offramp eval --anytime`` wrote about a model; None: nothing, or of other weights.

    Raises:
        OfframpError: when the file is not what it writes.
    """
    if not path.is_file():
        return None
    try:
        found = Anytime.model_validate(read_json(path))
    except ValidationError:
        raise OfframpError(f"{path}: no result of offramp eval --anytime; run it again") from None
    return found if found.fingerprint == fingerprint else None


def where(found: Anytime) -> str:
    """What the budgets are of: MACs, or time on an engine at a batch size."""
    if not found.unit.startswith("ms"):
        return found.unit
    size = found.meta.get("batch_size")
    return f"{found.engine}, {found.precision}" + (f", batch {size}" if size else "")


def exits_table(found: Anytime) -> Table:
    """Every exit with what it costs, counted both ways, and which other makes it pointless."""
    about = f"{found.dataset}, {found.split} split, {found.samples} samples; {where(found)}"
    task = task_named(found.task)
    made = _table(f"Anytime: {about}", ["", task.metric, "cost", "alone", "beaten by"])
    multi, single = found.curves["multi"], found.curves["single"]
    for k, name in enumerate(found.exit_names):
        better = multi.dominated_by[k]
        made.add_row(
            name,
            task.show(found.exits[k]),
            amount(multi.costs[k], found.unit),
            amount(single.costs[k], found.unit),
            "" if better is None else found.exit_names[better],
        )
    made.caption = f"unmodified backbone: {amount(found.full, found.unit)}"
    return made


def budgets_table(found: Anytime) -> Table:
    """Accuracy at some mean budgets, for every spread."""
    names, task = [budgets.name for budgets in BUDGETS], task_named(found.task)
    title = f"{task.metric[0].upper()}{task.metric[1:]} by mean budget"
    made = _table(title, ["budget", "of full", *names])
    curve = found.curves["multi"]
    for share in SHOWN:
        mean = share * found.full
        values = [accuracy_at(found.exits, curve.costs, found.prior, b, mean) for b in BUDGETS]
        made.add_row(
            amount(mean, found.unit), f"{share:g}", *(task.show(value) for value in values)
        )
    return made


def sentences(found: Anytime) -> list[str]:
    """The averages, and what the spreads are."""
    multi, single = found.curves["multi"], found.curves["single"]
    task, show = task_named(found.task), task_named(found.task).show
    low, high = (amount(multi.costs[k], found.unit) for k in (0, -1))
    return [
        f"budgets spread evenly from {low} to {high}: mean {task.metric} {show(multi.average)} "
        f"(with the right exit alone for every budget: {show(single.average)}); below the first "
        f"exit, answering without looking: {show(found.prior)}",
        *(f"{name}: {says}" for name, says in found.spreads.items()),
    ]


def plot_anytime(found: Anytime) -> Figure:
    """Accuracy over mean budget: the steps of a fixed one, and what spreading it does."""
    colours = look(len(found.exit_names))
    made, (axis,) = figure(6.8, 4.0)
    scale, unit = _scale(found)
    curve = found.curves["multi"]
    for name, values in curve.accuracy.items():
        _line(axis, found, curve, name, values, scale, colours)
    for k, (cost, value) in enumerate(zip(curve.costs, found.exits, strict=True)):
        beaten = curve.dominated_by[k] is not None
        face = colours.paper if beaten else colours.exits[k]
        axis.plot(
            cost * scale, value, "o", ms=6.5, mfc=face, mec=colours.exits[k], mew=1.3, zorder=5
        )
    axis.axvline(found.full * scale, color=colours.muted, lw=0.8, ls=(0, (2, 3)), zorder=1)
    base = axis.get_xaxis_transform()
    note(
        axis,
        "full model",
        (found.full * scale, 0.02),
        offset=(-4, 0),
        xycoords=base,
        ha="right",
        va="bottom",
        color=colours.muted,
        fontsize=8.5,
    )
    axis.set(xlabel=f"mean budget, {unit}", ylabel=_ylabel(found))
    axis.set_xlim(0, found.budgets[-1] * scale)
    axis.grid(axis="y")
    axis.legend(loc="center right", labelcolor=colours.ink, fontsize=9)
    return made


def save_anytime_plot(found: Anytime, path: Path) -> Path:
    """Draw and write a PNG."""
    with styled("anytime"):
        return save_png(plot_anytime(found), path)


def _ylabel(found: Anytime) -> str:
    task: Task = task_named(found.task)
    percent = ", %" if task.scale == 100 else ""
    return f"{task.metric} on the {found.split} split{percent}"


def _table(title: str, heads: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        made.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    return made


def amount(value: float, unit: str) -> str:
    """A cost with its unit."""
    return f"{value / 1e6:,.1f} M {unit}" if unit == "MACs" else f"{value:.3f} {unit}"


def _line(
    axis: Any,
    found: Anytime,
    curve: Curve,
    name: str,
    values: list[float],
    scale: float,
    colours: Look,
) -> None:
    fixed = name == "fixed"
    style: dict[str, Any] = {"color": colours.accent if fixed else colours.muted, "label": name}
    style |= {"ls": LINES.get(name, "-"), "lw": 1.8 if fixed else 1.4, "zorder": 3}
    if fixed:  # where it steps, not where the grid happens to lie
        xs = [0.0, *curve.costs, found.budgets[-1]]
        ys = [found.prior, *found.exits, found.exits[-1]]
        axis.step([x * scale for x in xs], ys, where="post", **style)
    else:
        axis.plot([budget * scale for budget in found.budgets], values, **style)


def _scale(found: Anytime) -> tuple[float, str]:
    if found.unit == "MACs":
        return 1e-6, "million MACs per image, heads on the way counted"
    return 1.0, f"{found.unit} per image ({where(found)}), heads on the way counted"
