"""``offramp predict``: labels for image files, and how far each had to go."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from offramp.cli.terminal import AsJson, emit, show, table
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.model_config import Preprocessing
    from offramp.runtime import Runner
    from offramp.runtime.prediction import Prediction


class Subject(NamedTuple):
    """What answers, and how to prepare images for it and name its answers."""

    runner: "Runner"
    preprocessing: "Preprocessing"
    labels: list[str] | None
    task: str
    point: str
    full_macs: float | None


def predict(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A trained run, or an exported bundle.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    point: Annotated[
        str | None, typer.Option(help="Operating point; the newest when omitted.")
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Answer each image in this time, with the newest exit reached by then.",
        ),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="FILE.jsonl to add the answers to, for offramp monitor.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label images, or count in them, and say how far each had to go.

    Every image stops at the first exit that is sure enough. An exported bundle answers without the
    model it came from.

    Example: [bold]offramp predict runs/demo photo.png --point chosen[/]
    """
    from offramp.data import eval_transform, read_image

    subject = _subject(run, point)
    opened = [read_image(path) for path in images]  # all are checked before the first answer
    transform = eval_transform(subject.preprocessing)
    answers = _answers(subject, [transform(image) for image in opened], deadline_ms)
    for path, answer in zip(images, answers, strict=True):
        answer["image"] = str(path)
    if log is not None:
        _log(log, answers)
    if as_json:
        emit({"run": str(run), "point": subject.point, "answers": answers})
        return
    depth = int(subject.runner.tables.blocks[-1])
    rows = [
        (
            answer["image"],
            *_shown(answer),
            answer["exit"],
            f"{answer['blocks']} of {depth}",
            f"{answer['ms']:.2f}",
        )
        for answer in answers
    ]
    said = ["value"] if subject.task == "regression" else ["label<", "probability"]
    columns = ["image", *said, "exit<", "blocks", "ms"]
    show(table(f"{run} at {subject.point}", columns, rows))


def _log(path: Path, answers: list[dict[str, Any]]) -> None:
    import numpy as np

    from offramp.monitor.log import append_lines
    from offramp.monitor.reference import Sight

    exits = np.array([answer["exit_index"] for answer in answers])
    sure = [
        answer["probability"] if "probability" in answer else answer["value"] for answer in answers
    ]
    append_lines(path, Sight(exits, np.array(sure), np.zeros(len(exits), dtype=bool)))


def _subject(folder: Path, point: str | None) -> Subject:
    from offramp.reduced_run import reduced_run
    from offramp.runs import RunFolder
    from offramp.runtime import compile_runner
    from offramp.runtime.bundle import is_bundle, load_bundle
    from offramp.runtime.manifest import Manifest

    if is_bundle(folder):
        if point is not None:
            raise OfframpError(f"{folder} is a bundle of one operating point: leave out --point")
        manifest = Manifest.load(folder)
        full = manifest.full_macs
        found = load_bundle(folder)
        names, task = manifest.classes, manifest.task
        return Subject(found, manifest.preprocessing, names, task, folder.name, full)
    name, chosen = RunFolder(folder).check().point(point)
    run = reduced_run(RunFolder(folder), chosen.reducer)
    options = run.engine_options(chosen.engine, chosen.precision)
    runner = compile_runner(run.model, chosen, options=options, costs=run.costs)
    model = run.model
    task = model.config.task
    return Subject(runner, model.preprocessing, model.labels, task, name, run.costs.full)


def _answers(
    subject: Subject, images: "list[Tensor]", deadline_ms: float | None
) -> list[dict[str, Any]]:
    """One answer per image (3, H, W), timed alone after one unmeasured run."""
    runner = subject.runner
    runner(images[0][None], deadline_ms=deadline_ms)  # the first call pays for warming up
    answers = []
    for image in images:
        start = time.perf_counter()
        said = runner(image[None], deadline_ms=deadline_ms)
        took = 1e3 * (time.perf_counter() - start)
        left = int(said.exit)
        share = None
        if said.cost is not None and subject.full_macs is not None:
            share = float(said.cost) / subject.full_macs
        answers.append(
            {
                **_said(subject, said),
                "exit": runner.exit_names[left],
                "exit_index": left,
                "blocks": int(said.blocks),
                "macs_share": share,
                "ms": took,
                **({} if said.cut is None else {"cut": bool(said.cut)}),
            }
        )
    return answers


def _said(subject: Subject, said: "Prediction") -> dict[str, Any]:
    """One answer: a class and its probability, or a number and what it counts."""
    names = subject.labels
    if subject.task == "regression":
        return {"value": float(said.values), "of": names[0] if names else None}
    index = int(said.labels)
    return {
        "label": names[index] if names else str(index),
        "index": index,
        "probability": float(said.probs[0, index]),
    }


def _shown(answer: dict[str, Any]) -> list[str]:
    from offramp.report.tables import percent

    if "value" in answer:
        return [f"{answer['value']:.2f} {answer['of'] or ''}".rstrip()]
    return [answer["label"], percent(100 * answer["probability"], 1)]
