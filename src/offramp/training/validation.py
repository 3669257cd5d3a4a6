"""What every exit can do while training goes on."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offramp.data import Batch, Split, batches
from offramp.model import MultiExitModel

Figures = dict[str, float]
"""``accuracy`` in percent, or ``mae`` and ``rmse`` in the unit of the targets."""

Answers = Callable[[Batch], Sequence[NamedTuple]]


@torch.no_grad()
def exit_figures(
    model: MultiExitModel,
    split: Split,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 256,
    listener: Callable[[Sequence[NamedTuple], Tensor], None] = lambda said, labels: None,
    answers: Answers | None = None,
) -> list[Figures]:
    """The task's figures of every exit over a split, its metric first.

    ``listener`` hears, batch by batch, what every exit says, and the labels. ``answers`` knows what
    every exit says of a batch without its images.
    """
    model.eval()
    target = model.config.target
    predictions, labels = [], []
    for batch in batches(
        split,
        batch_size=batch_size,
        preprocessing=model.preprocessing,
        with_images=answers is None,
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = answers(batch) if answers else model(batch.images.to(device))
        listener(outputs, batch.labels.to(device))
        said = torch.stack([out[0].float() for out in outputs], dim=1).cpu()  # B, K, C
        predictions.append(model.task.predict(said if target is None else target.restore(said)))
        labels.append(batch.labels)
    wanted = torch.cat(labels)
    return [model.task.figures(column, wanted) for column in torch.cat(predictions).unbind(1)]


def exit_accuracy(model: MultiExitModel, split: Split, **options: Any) -> list[float]:
    """Accuracy of every exit over a split, in percent; in regression minus its MAE.

    More is better either way, so that schedules may go by it. Options as for `exit_figures`.
    """
    sign = -1 if model.task.fewer else 1
    return [round(sign * f[model.task.key], 3) for f in exit_figures(model, split, **options)]


def validation_entry(model: MultiExitModel, figures: Sequence[Figures]) -> dict[str, Any]:
    """The figures as a line of ``metrics.jsonl`` holds them, by exit.

    ``validation`` is the task's metric (``accuracy`` or ``mae``, as ``metric`` says), and
    ``validation_final`` the last exit's; further figures stand under ``validation_NAME``.
    """
    entry: dict[str, Any] = {}
    for name in figures[0]:
        key = "validation" if name == model.task.key else f"validation_{name}"
        values = [round(found[name], 3) for found in figures]
        entry[key] = dict(zip(model.exit_names, values, strict=True))
    final = round(figures[-1][model.task.key], 3)
    return {"metric": model.task.key, **entry, "validation_final": final}
