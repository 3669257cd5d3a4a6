"""Methods side by side: accuracy over cost as a plot, and one table."""

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from offramp.comparison import Comparison, Method, Spread
from offramp.report.style import DEPTH_LIGHT, Look, figure, look, note, ramp, save_png, styled
from offramp.tasks import Task, task_named

FEW = 4  # methods whose lines can be told apart in one panel
COLUMNS = 5
LINES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
WIDEST = 1.1  # share of the reference's MACs up to which is drawn
NOBODY = "–"


def table_rows(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: the best area first."""
    task = task_named(found.task)
    heads = [
        "method",
        "policy",
        "full",
        *(f"at {100 * budget:g} %" for budget in found.budgets),
        *(f"MACs at {task.show_goal(drop)}" for drop in found.drops),
        f"mean {100 * found.lowest:.0f}–100 %",
        *(["time"] if any(method.timed for method in found.methods) else []),
        "training",
    ]
    return heads, [_row(found, task, method) for method in ranked(found)]


def ranked(found: Comparison) -> list[Method]:
    """The best area first, those without one last."""
    task = task_named(found.task)

    def place(method: Method) -> tuple[bool, float]:
        return method.area is None, -task.merit(method.area.mean) if method.area else 0.0

    return sorted(found.methods, key=place)


def _row(found: Comparison, task: Task, method: Method) -> list[str]:
    def amount(spread: Spread | None) -> str:
        return NOBODY if spread is None else f"{spread:.{task.digits}f}"

    cells = [method.name, method.policy, amount(method.full)]
    cells += [amount(method.at_budget[f"{budget:g}"]) for budget in found.budgets]
    cells += [_share(method.at_drop[f"{drop:g}"]) for drop in found.drops]
    cells.append(amount(method.area))
    if any(one.timed for one in found.methods):
        told = [f"{timed.speedup:.2f}× ({timed.ms:.2f} ms)" for timed in method.timed]
        cells.append(", ".join(told) or NOBODY)
    seconds = method.training_seconds
    return [*cells, f"{seconds.mean / 60:.1f} min" if seconds else NOBODY]


def _share(spread: Spread | None) -> str:
    return NOBODY if spread is None else str(spread)


def markdown(found: Comparison) -> str:
    """The table and what its columns mean, for a page."""
    heads, rows = table_rows(found)
    accuracy = task_named(found.task).told(found.reference_accuracy)
    lines = [
        f"{found.dataset}, {found.samples:,} {found.split} images. Budgets and drops refer to "
        f"{found.reference}: {accuracy} and "
        f"{found.reference_macs / 1e6:.0f} M MACs. Settings are chosen on the calibration split.",
        "",
        _columns(found),
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _columns(found: Comparison) -> str:
    """What the columns say, in sentences."""
    task, least = task_named(found.task), f"{100 * found.lowest:.0f}"
    told = [f"*Full*: the final exit's {task.axis}."]
    if found.budgets:
        budget = f"{100 * found.budgets[0]:g} %"
        told.append(f"*At {budget}*: {task.metric} with at most {budget} of the reference's MACs.")
    if found.drops:
        drop = found.drops[0]
        told.append(
            f"*MACs at {task.show_goal(drop)}*: share of the reference's MACs that it takes to "
            f"lose at most {drop:g} {task.unit} against the reference."
        )
    told.append(
        f"*Mean {least}–100 %*: mean {task.metric} over all budgets from {least} % of the "
        "reference's MACs, the least that every method can keep to, up to 100 %; the best stand "
        "first. A dash: no setting does it. ±: standard deviation over seeds."
    )
    return " ".join(told)


def plot_comparison(found: Comparison) -> Figure:
    """Held-out accuracy over the share of MACs, the best area first: all methods in one panel where
    they are few, else every recipe in its own, over the others in grey."""
    panels, colours = _panels(found), look(1)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (8.2, 5.2) if len(panels) == 1 else (2.6 * columns + 0.3, 2.3 * rows + 0.3)
    made, axes = figure(*size, len(panels), columns=columns, sharex=True, sharey=True, pad=0.05)
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, found, panel, colours)
    _limits(axes[0], found)
    place = (axes[0].get_xlim()[0], found.reference_accuracy)
    name = f"{found.reference}, full model"
    note(axes[0], name, place, offset=(3, 6), color=colours.muted, fontsize=8)
    font: dict[str, Any] = {"color": colours.muted, "fontsize": 9.5}
    made.supxlabel(f"share of the MACs of {found.reference}", **font)
    made.supylabel(f"{found.dataset}: {task_named(found.task).axis}", **font)
    return made


def save_comparison_plot(found: Comparison, path: Path) -> Path:
    """Draw and write a PNG."""
    with styled("comparison"):
        return save_png(plot_comparison(found), path)


class Panel(NamedTuple):
    """Methods that stand out together; of one recipe, which is the title, or of all."""

    title: str | None
    methods: list[Method]

    def label(self, method: Method) -> str:
        return method.policy if self.title else f"{method.name}, {method.policy}"


def _panels(found: Comparison) -> list[Panel]:
    order = ranked(found)
    if len(order) <= FEW:
        return [Panel(None, order)]
    names = dict.fromkeys(method.name for method in order)
    return [Panel(name, [method for method in order if method.name == name]) for name in names]


def _draw(axis: Any, found: Comparison, panel: Panel, colours: Look) -> None:
    axis.set_title(panel.title or "", fontsize=9.5)
    axis.grid(axis="y")
    axis.axhline(found.reference_accuracy, color=colours.muted, lw=0.8, ls=(0, (2, 3)))
    for method in found.methods:
        if method not in panel.methods:
            axis.plot(*_line(method), color=colours.rule, lw=0.7, zorder=2)
    shades = [colours.accent, *ramp(DEPTH_LIGHT, max(2, len(panel.methods)))[::-1]]
    for number, method in enumerate(panel.methods):
        style: dict[str, Any] = {"ls": LINES[number % len(LINES)], "lw": 1.6}
        style |= {"color": shades[number], "label": panel.label(method)}
        axis.plot(*_line(method), **style, zorder=4 - 0.1 * number)
    empty = "upper right" if task_named(found.task).fewer else "lower right"
    axis.legend(loc=empty, fontsize=7.5, handlelength=2.2, labelspacing=0.25, borderaxespad=0.2)


def _line(method: Method) -> tuple[list[float], list[float]]:
    spots = sorted(method.curve)
    return [cost for cost, _ in spots], [value for _, value in spots]


def _limits(axis: Any, found: Comparison) -> None:
    """As high as needed for the budgets that all methods can keep, as far left as that reaches."""
    drawn = [spot for method in found.methods for spot in method.curve if spot[0] <= WIDEST]
    values = [value for cost, value in drawn if cost >= found.lowest]
    low, high = (limit([found.reference_accuracy, *values]) for limit in (min, max))
    room = 0.08 * max(high - low, 0.02 * high, 1e-6)
    axis.set_ylim(low - room, high + room)
    left = [cost for cost, value in drawn if low - room <= value <= high + room]
    axis.set_xlim(min([0.9, *(cost - 0.02 for cost in left)]), WIDEST)
