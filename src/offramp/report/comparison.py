"""Methods side by side: accuracy over cost as a plot, and one table."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from offramp.comparison import Comparison, Method, Spread
from offramp.report.style import DEPTH_LIGHT, figure, look, note, ramp, save_png, styled
from offramp.tasks import Task, task_named

LINES = ("-", (0, (5, 2)), (0, (1, 1.4)))
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
        *_columns(found),
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _columns(found: Comparison) -> list[str]:
    """What the columns say, in sentences."""
    told = ["*Full*: accuracy of the final exit, in percent."]
    if found.budgets:
        budget = f"{100 * found.budgets[0]:g} %"
        told.append(f"*At {budget}*: accuracy with at most {budget} of the reference's MACs.")
    if found.drops:
        drop = f"{found.drops[0]:g}"
        told.append(
            f"*MACs at −{drop}*: share of the reference's MACs that it takes to lose at most "
            f"{drop} points against the reference."
        )
    told.append(
        f"*Mean {100 * found.lowest:.0f}–100 %*: mean accuracy over all budgets from "
        f"{100 * found.lowest:.0f} % of the reference's MACs, the least that every method can keep "
        "to, up to 100 %; the best stand first. A dash: no setting does it. ±: standard deviation "
        "over seeds."
    )
    return [" ".join(told)]


def plot_comparison(found: Comparison) -> Figure:
    """Held-out accuracy over the share of MACs, one line per method, the best area on top."""
    made, (axis,) = figure(8.2, 5.2)
    colours, order = look(1), ranked(found)
    shades = ramp(DEPTH_LIGHT, max(2, len(order)))[::-1]
    axis.set_xlabel(f"share of the MACs of {found.reference}")
    axis.set_ylabel(f"{found.dataset}: {task_named(found.task).axis}")
    axis.grid(axis="y")
    axis.axhline(found.reference_accuracy, color=colours.muted, lw=0.8, ls=(0, (2, 3)))
    for number, method in enumerate(order):
        spots = sorted(method.curve)
        label = method.name if method.policy == "confidence" else f"{method.name}, {method.policy}"
        style: dict[str, Any] = {"ls": LINES[number % len(LINES)], "lw": 1.4, "label": label}
        colour = colours.accent if number == 0 else shades[number]
        axis.plot([x for x, _ in spots], [y for _, y in spots], color=colour, **style)
    values = [y for method in order for x, y in method.curve if found.lowest <= x <= 1.05]
    low, high = (limit([found.reference_accuracy, *values]) for limit in (min, max))
    room = 0.08 * max(high - low, 0.02 * high, 1e-6)
    axis.set_ylim(low - room, high + room)
    axis.set_xlim(right=1.1)
    place = (axis.get_xlim()[1], found.reference_accuracy)
    note(axis, "reference", place, offset=(-2, 5), ha="right", color=colours.muted, fontsize=8)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return made


def save_comparison_plot(found: Comparison, path: Path) -> Path:
    """Draw and write a PNG."""
    with styled("comparison"):
        return save_png(plot_comparison(found), path)
