"""The images that leave first and those that go to the end."""

import base64
import io
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from PIL import Image

from offramp.calibration import Records
from offramp.errors import OfframpError
from offramp.report.findings import Chosen, Findings

SIDE = 96  # pixels; smaller images are shown pixel by pixel


@dataclass(frozen=True)
class Thumbnail:
    """One image with what was said about it."""

    source: str
    pixelated: bool
    label: str
    prediction: str
    right: bool
    confidence: float | None

    @property
    def note(self) -> str:
        """How sure the exit was; beside a number, what it should be."""
        if self.confidence is None:
            return f"is {self.label}"
        return f"{100 * self.confidence:.0f} % sure"


@dataclass(frozen=True)
class Shelf:
    """Images that left at one exit."""

    title: str
    images: list[Thumbnail]


def shelves(findings: Findings, chosen: Chosen, *, count: int = 8) -> list[Shelf]:
    """The surest leavers of the first exit, and the least sure of those who go deepest.

    An exit that answers with a number is the surer, the nearer the last exit is to it. Empty where
    the images are not on this machine.
    """
    used = chosen.decisions.exit.unique().tolist()
    if findings.samples is None or len(used) < 2:
        return []
    first, last = used[0], used[-1]
    confidence, names = sureness(chosen.records), findings.exit_names
    # what sent them on is what the last exit before said, not what the end says
    before = max((k for k in chosen.point.active if k < last), default=last)
    sure = _rows(chosen, first, -confidence[:, first], count)
    unsure = _rows(chosen, last, confidence[:, before], count)
    end = "the end" if last == len(names) - 1 else names[last]
    try:
        found = [
            Shelf(f"First: surest at {names[first]}", _thumbnails(findings, chosen, sure)),
            Shelf(f"Last: least sure before {end}", _thumbnails(findings, chosen, unsure)),
        ]
    except OfframpError:  # a file that has gone since
        return []
    return found if all(shelf.images for shelf in found) else []


def sureness(records: Records) -> torch.Tensor:
    """How sure every exit is of every sample (N, K): its confidence; for numbers minus the
    distance from what the last exit says."""
    if records.task.fewer:
        return -(records.prediction - records.prediction[:, -1:]).abs()
    return records.confidence


def _rows(chosen: Chosen, k: int, order: torch.Tensor, count: int) -> list[int]:
    leavers = (chosen.decisions.exit == k).nonzero()[:, 0]
    rows: list[int] = leavers[order[leavers].argsort(stable=True)][:count].tolist()
    return rows


def _thumbnails(findings: Findings, chosen: Chosen, rows: list[int]) -> list[Thumbnail]:
    records, split = chosen.records, findings.samples
    made = []
    for row in rows:
        place = findings.positions.get(int(records.ids[row]))
        if split is None or place is None:
            continue
        image, label, _ = split[place]
        said, k = chosen.decisions.prediction[row].item(), int(chosen.decisions.exit[row])
        source, pixelated = _embedded(image), max(image.size) < SIDE
        made.append(Thumbnail(source, pixelated, *_words(findings, chosen, row, k, said, label)))
    return made


def _words(
    findings: Findings, chosen: Chosen, row: int, k: int, said: float, label: float
) -> tuple[str, str, bool, float | None]:
    """Label, prediction, whether to call it right, and the confidence, where there is one."""
    if findings.task.fewer:
        return f"{label:g}", f"{said:.1f}", True, None
    classes = findings.run.model.labels or findings.run.data.classes
    sure = float(chosen.records.confidence[row, k])
    return classes[int(label)], classes[int(said)], said == label, sure


def _embedded(image: Image.Image) -> str:
    image = image.copy()
    image.thumbnail((2 * SIDE, 2 * SIDE))
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def plot_shelves(found: list[Shelf]) -> Figure:
    """The shelves as one picture, a row each."""
    columns = max(len(shelf.images) for shelf in found)
    made = Figure(figsize=(1.15 * columns, 1.75 * len(found)), layout="constrained")
    rows = made.subfigures(len(found), 1, squeeze=False)[:, 0]
    for row, shelf in zip(rows, found, strict=True):
        row.suptitle(shelf.title, fontsize=10, x=0.01, ha="left", fontweight="bold")
        for axis, image in zip(row.subplots(1, columns), shelf.images, strict=False):
            data = base64.b64decode(image.source.partition(",")[2])
            axis.imshow(Image.open(io.BytesIO(data)), interpolation="none")
            mark = "" if image.right else f" ({image.label})"
            axis.set_title(
                f"{image.prediction}{mark}", fontsize=8.5, loc="left", pad=3, fontweight="normal"
            )
        for axis in row.axes:
            axis.axis("off")
    return made
