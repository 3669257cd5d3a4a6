"""Reliability diagrams per exit, and how the exits learned."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from offramp.calibration import Reliability
from offramp.report.style import Look, figure, look, note

COLUMNS = 4


def plot_reliability(found: Reliability, k: int, num_exits: int) -> Figure:
    """The diagram of exit ``k``, small enough for a phone."""
    made, (axis,) = figure(2.3, 2.35)
    _diagram(axis, found, k, look(num_exits))
    return made


def plot_reliabilities(found: Sequence[Reliability]) -> Figure:
    """All exits' diagrams."""
    columns = min(COLUMNS, len(found))
    rows = -(-len(found) // columns)
    made = Figure(figsize=(2.6 * columns, 2.6 * rows), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False).flatten()
    for k, axis in enumerate(axes):
        if k < len(found):
            _diagram(axis, found[k], k, look(len(found)))
        else:
            axis.set_visible(False)
    return made


def _diagram(axis: Any, found: Reliability, k: int, colours: Look) -> None:
    axis.set_title(f"{found.exit_name}", fontsize=9.5, pad=5)
    axis.plot([0, 1], [0, 1], color=colours.muted, lw=0.8, ls=(0, (2, 3)), zorder=1)
    bins = zip(found.count, found.confidence, found.accuracy, strict=True)
    seen = [(n, c, a) for n, c, a in bins if c is not None and a is not None]
    counts, confidence, right = zip(*seen, strict=True)
    sizes = [6 + 60 * n / max(counts) for n in counts]  # area says how many samples
    axis.plot(confidence, right, color=colours.exits[k], lw=1.2)
    axis.scatter(confidence, right, s=sizes, color=colours.exits[k], lw=0, zorder=3)
    axis.text(0.97, 0.05, f"ECE {100 * found.ece:.1f} %", ha="right", fontsize=9)
    axis.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axis.set_xlabel("confidence", fontsize=8.5)
    axis.set_ylabel("right", fontsize=8.5)


def plot_training(
    metrics: Sequence[dict[str, Any]], exit_names: Sequence[str], *, width: float = 5.6
) -> Figure:
    """Validation accuracy, or MAE, of every exit by epoch, all stages in a row."""
    colours = look(len(exit_names))
    made, (axis,) = figure(width, 3.2)
    stages: dict[int, list[dict[str, Any]]] = {}
    for entry in metrics:
        stages.setdefault(entry["stage_index"], []).append(entry)
    begin = 0
    for entries in (stages[index] for index in sorted(stages)):
        epochs = [begin + entry["epoch"] for entry in entries]
        for k, name in enumerate(exit_names):
            final = k == len(exit_names) - 1
            if entries[0]["stage"] == "finetune" and not final:
                continue  # the plain model learns alone: its exits have seen nothing yet
            values = [entry["validation"].get(name) for entry in entries]
            style: dict[str, Any] = {"color": colours.exits[k], "lw": 2.0 if final else 1.3}
            axis.plot(epochs, values, "-o", ms=3, mew=0, **style)
        if begin:
            axis.axvline(begin + 0.5, color=colours.rule, lw=0.8)
        last = entries is stages[max(stages)] and len(stages) > 1
        at, side = (epochs[-1] + 0.5, "right") if last else (begin + 0.5, "left")
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "color": colours.muted}
        title = entries[0]["stage"].replace("_", " ")
        note(axis, title, (at, 1.0), offset=(0, 3), va="bottom", ha=side, **place, fontsize=9)
        begin = epochs[-1]
    fewer = metrics[0].get("metric") == "mae"
    label = "validation MAE" if fewer else "validation accuracy, %"
    axis.set(xlabel="epoch", ylabel=label, xlim=(0.5, begin + 0.5))
    axis.grid(axis="y")
    axis.locator_params(axis="x", integer=True)
    return made
