"""Accuracy against speed-up in three panels that are never mixed: layers, MACs, time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from offramp.report.findings import Findings
from offramp.report.spots import Spot
from offramp.report.style import Look, figure, look, note
from offramp.report.timing import NOT_MEASURED

NARROW = (0.5, 0.7, 0.8, 1, 1.2, 1.5, 2, 2.5, 3)
WIDE = (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
OTHER_LINES = ((0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))  # fronts after the first


@dataclass(frozen=True)
class Panel:
    """One of the three speed-ups: where it is found in a spot, and what the panel says."""

    key: str
    title: str
    axis: str
    pick: Callable[[Spot], float | None]


def panels(findings: Findings) -> list[Panel]:
    """Layers, MACs, time."""
    where = f" ({findings.timing.where})" if findings.timing.measured else ""
    return [
        Panel("layers", "Layers", "blocks of the model / mean blocks run", lambda s: s.layers),
        Panel("macs", "MACs", "MACs of the model / mean MACs, heads counted", lambda s: s.macs),
        Panel("time", "Time", f"time of the model / mean time{where}", lambda s: s.time),
    ]


def plot_tradeoff(findings: Findings) -> Figure:
    """All three panels with one legend: the picture for a README, 12 inches wide."""
    colours = look(findings.records.num_exits)
    made, axes = figure(12, 4.7, 3, sharey=True, pad=0.1)
    for panel, axis in zip(panels(findings), axes, strict=True):
        draw_panel(axis, findings, panel, colours)
    axes[0].set_ylabel(f"{findings.task.axis}, {findings.split} split")
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)
    handles, labels = _handles(findings, colours)
    made.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels) if len(labels) < 8 else -(-len(labels) // 2),
        handletextpad=0.4,
        columnspacing=2.0,
        labelcolor=colours.ink,
        fontsize=9.5,
    )
    return made


def plot_panel(findings: Findings, panel: Panel) -> Figure:
    """One panel alone, small enough for a phone."""
    made, (axis,) = figure(3.9, 3.7)
    draw_panel(axis, findings, panel, look(findings.records.num_exits))
    axis.set_ylabel(findings.task.axis)
    return made


def draw_panel(axis: Any, findings: Findings, panel: Panel, colours: Look) -> None:
    """Draw fronts, static exits, the full model and the chosen points over one speed-up."""
    axis.set_title(panel.title)
    axis.set_xlabel(panel.axis)
    axis.grid(axis="y")
    axis.axhline(findings.full.accuracy, color=colours.muted, lw=0.8, ls=(0, (2, 3)), zorder=1)
    _scale(axis, findings)
    if not any(panel.pick(spot) for spot in _spots(findings)):
        axis.text(0.5, 0.5, NOT_MEASURED, transform=axis.transAxes, ha="center", va="center")
        axis.set_xticks([])
        return
    _oracle(axis, findings, panel, colours)
    _static(axis, findings, panel, colours)
    if panel.key == "time":
        _others(axis, findings, colours)
    for number, front in enumerate(findings.fronts):
        spots = [spot for spot in front.spots if panel.pick(spot) is not None]
        xs, ys = [panel.pick(spot) for spot in spots], [spot.accuracy for spot in spots]
        axis.plot(xs, ys, **_line(number, colours), zorder=2.5 - 0.1 * number)
    if findings.plain is not None:
        axis.plot(1, findings.plain, "D", ms=8.5, mfc="none", mec=colours.ink, mew=1.1, zorder=5)
    axis.plot(1, findings.full.accuracy, "s", ms=6, color=colours.ink, mew=0, zorder=6)
    _chosen(axis, findings, panel, colours)


def legend_names(findings: Findings) -> list[tuple[str, str]]:
    """(mark, meaning) of everything drawn, in the order of the legend."""
    show = findings.task.show
    names = [("full", f"full model, {show(findings.full.accuracy)}")]
    if findings.plain is not None:
        names.append(("plain", f"plain backbone, {show(findings.plain)}"))
    if findings.static:
        names.append(("static", "all leave after block n"))
    for number, front in enumerate(findings.fronts):
        names.append((f"front {number}", f"front, {front.label}"))
    if findings.oracle:
        names.append(("oracle", "oracle (knows which exit is right)"))
    if findings.chosen:
        names.append(("chosen", "chosen point"))
    if len(findings.chosen) > 1:
        names.append(("point", "earlier points"))
    return names


def _oracle(axis: Any, findings: Findings, panel: Panel, colours: Look) -> None:
    spots = [(panel.pick(spot), spot.accuracy) for spot in findings.oracle]
    known = [(x, y) for x, y in spots if x is not None]
    axis.plot([x for x, _ in known], [y for _, y in known], **_bound(colours), zorder=1.5)


def _static(axis: Any, findings: Findings, panel: Panel, colours: Look) -> None:
    for k, (spot, position) in enumerate(
        zip(findings.static, findings.records.meta.positions, strict=True)
    ):
        x = panel.pick(spot)
        if x is None:
            continue
        axis.plot(x, spot.accuracy, "o", ms=7, color=colours.exits[k], mew=0, zorder=3)
        under: dict[str, Any] = {"offset": (0, -7), "ha": "center", "va": "top"}
        note(axis, str(position), (x, spot.accuracy), **under, color=colours.muted, fontsize=8)


def _others(axis: Any, findings: Findings, colours: Look) -> None:
    """Plain models timed beside the runner: where they stand in time; accuracy is not theirs."""
    for name, speedup in _beside(findings).items():
        axis.axvline(speedup, color=colours.muted, lw=0.9, ls=(0, (1, 2)), zorder=1)
        foot = (speedup, axis.get_ylim()[0])
        turned: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 7.5}
        note(axis, name, foot, offset=(-2, 4), color=colours.muted, **turned)


def _beside(findings: Findings) -> dict[str, float]:
    """Speed-up over the full model of every plain model in the newest point's benchmark."""
    timed = findings.timing.batches(findings.headline.name) if findings.headline else []
    return {name: 1 / plain.ratio for name, plain in timed[0].statics.items()} if timed else {}


def _chosen(axis: Any, findings: Findings, panel: Panel, colours: Look) -> None:
    for number, chosen in reversed(list(enumerate(findings.chosen))):
        x, y = panel.pick(chosen.spot), chosen.spot.accuracy
        if x is None:
            continue
        face = colours.accent if number == 0 else colours.paper
        axis.plot(x, y, "o", ms=9.5, mfc=face, mec=colours.accent, mew=1.6, zorder=7)
        if number == 0:
            _say(axis, findings, panel, (x, y), colours)


def _say(
    axis: Any, findings: Findings, panel: Panel, at: tuple[float, float], colours: Look
) -> None:
    """The newest point's speed-up, and what was measured at other batch sizes."""
    low, high = axis.get_xlim()
    right = (at[0] / low) ** 2 > high / low  # in the right half of a log scale: write leftwards
    side = 8 if right else 4
    font: dict[str, Any] = {"color": colours.accent, "va": "bottom"}
    font |= {"ha": "right" if right else "left", "in_layout": False}
    note(axis, f"{at[0]:.2f}×", at, offset=(side, 8), **font, fontsize=11, fontweight="bold")
    if panel.key == "time" and findings.headline:
        more = findings.timing.batches(findings.headline.name)[1:]
        said = ", ".join(f"{batch.speedup_time:.2f}× at batch {batch.batch_size}" for batch in more)
        note(axis, said, at, offset=(side, 23), **font, fontsize=8)


def _spots(findings: Findings) -> list[Spot]:
    """Everything drawn but the full model and the plain backbone."""
    spots = [*findings.static, *(chosen.spot for chosen in findings.chosen)]
    spots += [spot for front in findings.fronts for spot in front.spots]
    return spots + findings.oracle


def _scale(axis: Any, findings: Findings) -> None:
    """The same scales in all panels, so that they can be read against each other."""
    spots = _spots(findings)
    xs = [x for spot in spots for x in (spot.layers, spot.macs, spot.time) if x is not None]
    xs += _beside(findings).values()
    ys = [spot.accuracy for spot in (findings.full, *spots)]
    ys += [] if findings.plain is None else [findings.plain]
    room = max(max(ys) - min(ys), 0.02 * max(ys) if findings.task.fewer else 1.0, 1e-6)
    low, high = min([0.92, *(0.94 * x for x in xs)]), max([1.3, *(1.09 * x for x in xs)])
    axis.set_ylim(min(ys) - 0.1 * room, max(ys) + 0.16 * room)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [tick for tick in (NARROW if high < 3.5 else WIDE) if low <= tick <= high]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if tick not in (1.5, 3, 6, 12)]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}×" for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())


def _handles(findings: Findings, colours: Look) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    middle = colours.exits[len(colours.exits) // 2]
    marks: dict[str, dict[str, Any]] = {
        "full": {"marker": "s", "ms": 6, "color": colours.ink, "lw": 0},
        "plain": {"marker": "D", "ms": 7, "mfc": "none", "mec": colours.ink, "lw": 0},
        "static": {"marker": "o", "ms": 7, "color": middle, "lw": 0},
        "chosen": {"marker": "o", "ms": 9, "color": colours.accent, "lw": 0},
        "point": {"marker": "o", "ms": 8, "mfc": "none", "mec": colours.accent, "lw": 0},
    }
    marks["oracle"] = _bound(colours)
    marks |= {f"front {n}": _line(n, colours) for n in range(len(findings.fronts))}
    names = legend_names(findings)
    return [Line2D([], [], **marks[mark]) for mark, _ in names], [name for _, name in names]


def _bound(colours: Look) -> dict[str, Any]:
    """How the oracle is drawn: thin and broken, for nobody can run it."""
    return {"color": colours.ink, "lw": 0.8, "ls": (0, (7, 3.5))}


def _line(number: int, colours: Look) -> dict[str, Any]:
    """How a front is drawn: the newest point's in the accent's shade, others grey and broken."""
    style = {"marker": "o", "ms": 3.4, "mew": 0, "lw": 1.3}
    if number == 0:
        return {**style, "color": colours.soft}
    return {**style, "color": colours.muted, "ls": OTHER_LINES[(number - 1) % 3], "ms": 2.6}
