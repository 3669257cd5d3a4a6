"""Who leaves where: shares per exit, how right the leavers are, and whether harder goes deeper."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from offramp.report.findings import Chosen, Findings
from offramp.report.style import figure, look, note

MOST_VALUES = 24  # an attribute with more values is no axis


@dataclass(frozen=True)
class Group:
    """Samples that share an attribute's value, at an operating point."""

    value: int
    count: int
    accuracy: float
    mean_blocks: float
    exit_share: list[float]


def groups(findings: Findings, chosen: Chosen) -> dict[str, list[Group]]:
    """For every attribute of the split, what happens to the samples of each value."""
    split, records = findings.samples, chosen.records
    if split is None or not split.attributes:
        return {}
    places = torch.tensor([findings.positions.get(sample, -1) for sample in records.ids.tolist()])
    if bool((places < 0).any()):
        return {}
    found = {}
    for name, column in split.attributes.items():
        values = column[places]
        different = values.unique().tolist()
        if 1 < len(different) <= MOST_VALUES:
            found[name] = [_group(chosen, value, values == value) for value in different]
    return found


def _group(chosen: Chosen, value: int, mine: torch.Tensor) -> Group:
    records, decisions = chosen.records, chosen.decisions
    exits = decisions.exit[mine]
    blocks = torch.tensor(records.meta.blocks_run, dtype=torch.float64)[exits]
    worth = records.worth_of(decisions.prediction)[mine].double()
    share = torch.bincount(exits, minlength=records.num_exits).double() / len(exits)
    return Group(
        value=int(value),
        count=len(exits),
        accuracy=records.task.value(worth.mean().item()),
        mean_blocks=blocks.mean().item(),
        exit_share=share.tolist(),
    )


def plot_shares(findings: Findings, chosen: Chosen, *, width: float = 4.6) -> Figure:
    """Share of the samples that leave at each exit, one row per exit."""
    names, share = findings.exit_names, np.array(chosen.evaluation.exit_share)
    colours = look(len(names))
    made, (axis,) = figure(width, 0.9 + 0.29 * len(names))
    rows = np.arange(len(names))
    axis.barh(rows, 100 * share, color=colours.exits, height=0.68)
    on = {*chosen.point.active, len(names) - 1}
    for row, value in enumerate(share):
        text, tone = (f"{100 * value:.1f} %", colours.ink) if row in on else ("off", colours.muted)
        note(axis, text, (100 * value, row), offset=(4, 0), color=tone, fontsize=9)
    axis.set(yticks=rows, yticklabels=names, xlabel="samples that leave here, %")
    axis.set_xlim(0, 100 * share.max() * 1.2)
    axis.invert_yaxis()
    axis.spines["left"].set_visible(False)
    return made


def plot_accuracy(findings: Findings, chosen: Chosen, *, width: float = 4.6) -> Figure:
    """The metric of those who leave at an exit, next to the exit's on everybody."""
    names = findings.exit_names
    colours = look(len(names))
    made, (axis,) = figure(width, 0.9 + 0.29 * len(names))
    task = findings.task
    everybody = [task.value(worth) for worth in chosen.records.accuracy]
    for row, (all_, mine) in enumerate(
        zip(everybody, chosen.evaluation.leaver_accuracy, strict=True)
    ):
        axis.plot(all_, row, "o", ms=6, mfc="none", mec=colours.exits[row], mew=1.5)
        if mine is not None:
            axis.plot([all_, mine], [row, row], color=colours.exits[row], lw=1.2)
            axis.plot(mine, row, "o", ms=7.5, color=colours.exits[row], mew=0)
    axis.axvline(findings.full.accuracy, color=colours.muted, lw=0.8, ls=(0, (2, 3)), zorder=1)
    axis.set(yticks=range(len(names)), yticklabels=names)
    axis.set_xlabel(f"{task.axis}: ● of those who leave here, ○ of everybody")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")
    return made


def plot_groups(findings: Findings, name: str, found: list[Group], *, width: float = 5.0) -> Figure:
    """Where the samples of each value leave, with the mean number of blocks they take."""
    colours = look(findings.records.num_exits)
    made, (axis,) = figure(width, 0.85 + 0.36 * len(found))
    rows = np.arange(len(found))
    left = np.zeros(len(found))
    for k in range(findings.records.num_exits):
        share = np.array([100 * group.exit_share[k] for group in found])
        axis.barh(rows, share, left=left, color=colours.exits[k], height=0.7, lw=0)
        left += share
    for row, group in enumerate(found):
        text = f"{group.mean_blocks:.2f} blocks"
        note(axis, text, (100, row), offset=(7, 0), fontsize=9.5)
    axis.set(yticks=rows, yticklabels=[str(group.value) for group in found], xlim=(0, 100))
    axis.set(ylabel=name, xlabel="share of the samples, by the exit they leave at, %")
    axis.invert_yaxis()
    axis.spines["left"].set_visible(False)
    return made
