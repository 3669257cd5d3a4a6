"""Who takes part: static models by name or from run folders, and one run's dynamic model."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from offramp.backbones import build_backbone
from offramp.creation import create
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.recording import collect
from offramp.runs import RunFolder
from offramp.zoo.published import published, table

if TYPE_CHECKING:
    from offramp.data import DataSource

# a few sizes of what people run on CPUs, from fast to accurate
DEFAULT_MODELS = (
    "levit_128s",
    "levit_192",
    "levit_256",
    "mobilevitv2_100",
    "efficientnet_b0",
    "efficientnet_b2",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
)


@dataclass(frozen=True)
class Candidate:
    """A static model and what is known of its accuracy (top-1 in percent)."""

    name: str
    model: nn.Module
    image_size: tuple[int, int]
    accuracy: float | None = None
    task: str | None = None
    source: str | None = None
    weights: str | None = None


def static_candidates(
    models: Sequence[str], data: "DataSource | None", split: str, *, progress: bool
) -> list[Candidate]:
    """One candidate for each name or run folder; a pattern such as ``levit_*`` stands for several.

    Args:
        data: evaluate the named models on it, with their pretrained weights.

    Raises:
        OfframpError: for an unknown name, or weights that are not to be had.
    """
    found = {}
    for given in models:
        for name in _expand(given):
            if (Path(name) / "config.json").is_file():
                found[name] = of_run(RunFolder(name), split, progress=progress)
            elif data is not None:
                found[name] = _measured(name, data, split, progress=progress)
            else:
                found[name] = _published(name)
    return list(found.values())


def of_run(run: RunFolder, split: str, *, progress: bool) -> Candidate:
    """A run's backbone without exits: as trained alone where that was done, else its last exit."""
    if (task := run.model.config.task) != "classification":
        raise OfframpError(f"{run.path}: a frontier compares accuracies, but its task is {task}")
    records = run.records(split, progress=progress)
    evaluation = run.evaluation() or {}
    current = (evaluation.get("fingerprint"), evaluation.get("split")) == (
        records.meta.fingerprint,
        split,
    )
    plain = evaluation.get("plain") if current else None
    kind = "backbone trained alone" if plain else "last exit"
    return Candidate(
        name=f"{run.path.resolve().name} ({kind})",
        model=run.model.chain.whole,
        image_size=run.model.chain.image_size,
        accuracy=plain["accuracy"] if plain else 100 * records.accuracy[-1],
        task=task_of(run, split),
        source=f"records, {len(records)} samples",
    )


def task_of(run: RunFolder, split: str) -> str:
    """What a run's accuracies are measured on; with 1000 classes, what the published ones are."""
    if run.model.config.num_classes == 1000:
        return table().task
    return f"{run.data.name}, {split} split"


def _published(name: str) -> Candidate:
    model = build_backbone(name)
    size = _input_size(name, model)
    known = published(name, size)
    if known is None:
        return Candidate(name, model, size)
    return Candidate(name, model, size, known.accuracy, table().task, known.source, known.weights)


def _measured(name: str, data: "DataSource", split: str, *, progress: bool) -> Candidate:
    """A model without exits is a multi-exit model with one, so it has records too."""
    model: MultiExitModel = create(name, exits=[], pretrained=True)
    records = collect(model, data, split=split, progress=progress)
    return Candidate(
        name,
        model.chain.whole,
        model.chain.image_size,
        100 * records.accuracy[-1],
        table().task if data.num_classes == 1000 else f"{data.name}, {split} split",
        f"records, {len(records)} samples of {data.name}",
    )


def _input_size(name: str, model: nn.Module) -> tuple[int, int]:
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size is None:
        raise OfframpError(f"{name} does not say which image size it was made for")
    return int(size[-2]), int(size[-1])


def _expand(name: str) -> list[str]:
    """The models a pattern stands for; any other name is left as it is."""
    if not any(sign in name for sign in "*?["):
        return [name]
    import timm

    found = [model for model in timm.list_models() if fnmatchcase(model, name)]
    if not found:
        raise OfframpError(f"no model matches {name!r} (see offramp list models)")
    return found
