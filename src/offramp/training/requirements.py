"""What a stage requires of its data and settings, checked before anything is written."""

from offramp.data import Augment, Split
from offramp.errors import OfframpError, suggest
from offramp.training.recipe import Stage


def steps_per_epoch(stage: Stage, split: Split, world: int) -> int:
    """Optimizer steps in one epoch; raises `OfframpError` where the stage cannot run at all."""
    from timm.optim import list_optimizers

    settings = stage.settings
    if split.labels.is_floating_point():
        _refuse_mixing(stage)
    if stage.fixed_images:
        _refuse_changing_images(stage, split)
    if settings.optimizer not in list_optimizers():
        raise OfframpError(
            f"stage {stage.name}: {suggest('optimizer', settings.optimizer, list_optimizers())}"
        )
    if len(split) < settings.batch_size * world:
        raise OfframpError(
            f"stage {stage.name}: batch_size = {settings.batch_size} on {world} device(s), but "
            f"the train split has {len(split)} samples"
        )
    return len(split) // (settings.batch_size * world)


def _refuse_mixing(stage: Stage) -> None:
    """Raise `OfframpError` if targets that are numbers would be mixed or smoothed like classes."""
    for key in ("mixup", "cutmix", "label_smoothing"):
        if value := getattr(stage.settings.augment, key):
            raise OfframpError(
                f"recipe.{stage.name}.augment.{key} = {value:g} mixes classes, but this data set's "
                "targets are numbers: leave it out"
            )


def _refuse_changing_images(stage: Stage, split: Split) -> None:
    """Raise `OfframpError` if images differ from epoch to epoch (label smoothing may stay)."""
    augment = stage.settings.augment
    if augment != Augment(label_smoothing=augment.label_smoothing):
        reason = f"recipe.{stage.name}.augment must be off"
    elif split.varies:
        reason = "this data set composes new images in every epoch"
    else:
        return
    raise OfframpError(
        f"stage {stage.name} keeps features of each image, but {reason} (or set cache_gb: null)"
    )
