"""How far answers are to be trusted, as tables, sentences and a plot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from offramp.report.style import figure, look, note, save_png, styled
from offramp.report.tables import percent
from offramp.uncertainty.evaluation import Sets, Subject, Uncertainty
from offramp.uncertainty.metrics import Scores

SCORES = ("accuracy %", "NLL", "Brier", "ECE %", "adaptive ECE %", "AUROC", "AUPRC", "AURC")
SETS = ("of every", "sets", "by", "covered", "classes", "empty", "least covered exit")
HARDEST = 30  # leavers below which an exit's coverage says little


def subjects(found: Uncertainty) -> Iterator[tuple[str, Subject]]:
    """Every exit for everybody, then every operating point."""
    yield from zip(found.exit_names, found.exits, strict=True)
    yield from ((f"point {name}", subject) for name, subject in found.points.items())


def scores_rows(found: Uncertainty) -> list[list[str]]:
    """A row per exit and point, as `SCORES` heads them."""
    return [[name, *_shown(subject.scores)] for name, subject in subjects(found)]


def leavers_rows(subject: Subject, exit_names: list[str]) -> list[list[str]]:
    """The same among those who leave a point at each exit."""
    pairs = zip(exit_names, subject.leavers, strict=True)
    return [[name, *_shown(scores)] for name, scores in pairs if scores]


def sets_rows(subject: Subject, exit_names: list[str]) -> list[list[str]]:
    """A row per kind of prediction set, as `SETS` heads them."""
    return [_set_row(sets, exit_names, subject.scores.samples) for sets in subject.sets]


def outside_rows(found: Uncertainty) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of how well a foreign data set is told apart."""
    names = list(next(iter(found.exits)).outside)
    rows = [
        [name, *(f"{value.auroc:.3f} / {value.auprc:.3f}" for value in subject.outside.values())]
        for name, subject in subjects(found)
    ]
    return names, rows


def tables(found: Uncertainty) -> list[Table]:
    """All of it for the terminal; prediction sets of the points, or of the last exit."""
    made = [_table(f"Trust: {about(found)}", ["", *SCORES], scores_rows(found))]
    for name, subject in found.points.items():
        leaving = leavers_rows(subject, found.exit_names)
        made.append(_table(f"Who leaves point {name} where", ["", *SCORES], leaving))
    shown = found.points or {found.exit_names[-1]: found.exits[-1]}
    for name, subject in shown.items():
        title = f"Prediction sets of {name}, from {found.sets_samples} {found.sets_from} samples"
        made.append(_table(title, list(SETS), sets_rows(subject, found.exit_names)))
    if found.outside:
        names, rows = outside_rows(found)
        title = f"Told from {found.outside}, AUROC / AUPRC"
        made.append(_table(title, ["", *names], rows))
    return made


def about(found: Uncertainty) -> str:
    return f"{found.dataset}, {found.split} split, {found.samples} samples"


def sentences(found: Uncertainty) -> list[str]:
    """What the numbers say, per point, or of the full model."""
    shown = {f"point {name}": subject for name, subject in found.points.items()}
    return [_sentence(name, s) for name, s in (shown or {"full model": found.exits[-1]}).items()]


def plot_selective(found: Uncertainty) -> Figure:
    """Risk against coverage of the exits for everybody, and of the points."""
    colours = look(len(found.exits))
    made, (axis,) = figure(6.8, 3.6)
    last = len(found.exits) - 1
    for k, subject in enumerate(found.exits):
        style: dict[str, Any] = {"color": colours.exits[k], "lw": 2.0 if k == last else 1.1}
        _draw(axis, subject, **style)
    for number, (name, subject) in enumerate(reversed(list(found.points.items()))):
        colour = colours.accent if number == 0 else colours.soft
        _draw(axis, subject, color=colour, lw=1.8, ls=(0, (5, 1.5)), label=f"point {name}")
    end = found.exits[last].selective
    note(axis, "full model", (1.0, 100 * end.risk[-1]), offset=(4, 0), color=colours.exits[last])
    axis.set(xlabel="share of the samples answered, the surest first", ylabel="wrong among them, %")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")
    if found.points:
        axis.legend(loc="upper left", labelcolor=colours.ink, fontsize=9)
    return made


def save_selective_plot(found: Uncertainty, path: Path) -> Path:
    """Draw and write a PNG."""
    with styled("uncertainty"):
        return save_png(plot_selective(found), path)


def _draw(axis: Any, subject: Subject, **style: Any) -> None:
    curve = subject.selective
    axis.plot(curve.coverage, [100 * risk for risk in curve.risk], **style)


def _shown(scores: Scores) -> list[str]:
    return [
        f"{scores.accuracy:.2f}",
        f"{scores.nll:.3f}",
        f"{scores.brier:.3f}",
        f"{100 * scores.ece:.2f}",
        f"{100 * scores.adaptive_ece:.2f}",
        *("–" if v is None else f"{v:.3f}" for v in (scores.auroc, scores.auprc)),
        f"{scores.aurc:.3f}",
    ]


def _set_row(sets: Sets, exit_names: list[str], samples: int) -> list[str]:
    found = sets.found
    known = [
        (held, name)
        for held, share, name in zip(found.exit_coverage, found.exit_share, exit_names, strict=True)
        if held is not None and share * samples >= HARDEST
    ]
    low, where = min(known) if known else (None, "")
    return [
        f"{100 * (1 - sets.alpha):g} %",
        sets.method.upper(),
        sets.by,
        percent(100 * found.coverage, 1),
        f"{found.size:.2f}",
        percent(100 * found.empty, 1),
        "–" if low is None else f"{percent(100 * low, 1)} ({where})",
    ]


def _sentence(name: str, subject: Subject) -> str:
    scores = subject.scores
    lean = f"confidence is off by {100 * scores.ece:.1f} points on average"
    smallest = min(subject.sets, key=lambda sets: (sets.alpha, sets.found.size))
    return (
        f"{name}: {lean}; {100 * (1 - smallest.alpha):g} % sets hold {smallest.found.size:.2f} "
        f"classes on average ({smallest.method.upper()}, {100 * smallest.found.coverage:.1f} % "
        "covered)"
    )


def _table(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    made.add_column(heads[0], min_width=9, overflow="fold")
    for head in heads[1:]:
        made.add_column(head.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made
