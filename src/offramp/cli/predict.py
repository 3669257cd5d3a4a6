"""``offramp predict``: labels for image files, and how far each had to go."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.terminal import AsJson, Run, emit, show, table

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.runs import RunFolder


def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    point: Annotated[
        str | None, typer.Option(help="Operating point; the newest when omitted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label images, and say how far each had to go.

    Every image stops at the first exit that is sure enough.

    Example: [bold]offramp predict runs/demo photo.png --point confidence-max-drop-0.5[/]
    """
    from offramp.data import eval_transform, read_image
    from offramp.report.tables import percent
    from offramp.runs import RunFolder

    folder = RunFolder(run).check()
    name, _ = folder.point(point)
    opened = [read_image(path) for path in images]  # all are checked before the first answer
    transform = eval_transform(folder.model.preprocessing)
    answers = _answers(folder, name, [transform(image) for image in opened])
    for path, answer in zip(images, answers, strict=True):
        answer["image"] = str(path)
    if as_json:
        emit({"run": str(run), "point": name, "answers": answers})
        return
    rows = [
        (
            answer["image"],
            answer["label"],
            percent(100 * answer["probability"], 1),
            answer["exit"],
            f"{answer['blocks']} of {len(folder.model.chain)}",
            f"{answer['ms']:.2f}",
        )
        for answer in answers
    ]
    columns = ["image", "label<", "probability", "exit<", "blocks", "ms"]
    show(table(f"{folder.path} at {name}", columns, rows))


def _answers(run: "RunFolder", point: str, images: "list[Tensor]") -> list[dict[str, Any]]:
    """One answer per image (3, H, W), timed alone after one unmeasured run."""
    from offramp.runtime import compile_runner

    model = run.model
    runner = compile_runner(model, run.point(point)[1], costs=run.costs)
    runner(images[0][None])  # the first call pays for warming up
    answers = []
    for image in images:
        start = time.perf_counter()
        said = runner(image[None])
        took = 1e3 * (time.perf_counter() - start)
        index, left = int(said.labels), int(said.exit)
        assert said.cost is not None
        answers.append(
            {
                "label": model.labels[index] if model.labels else str(index),
                "index": index,
                "probability": float(said.probs[0, index]),
                "exit": model.exit_names[left],
                "exit_index": left,
                "blocks": int(said.blocks),
                "macs_share": float(said.cost) / run.costs.full,
                "ms": took,
            }
        )
    return answers
