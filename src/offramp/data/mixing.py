"""Mixup and CutMix over a batch, seeded by where the batch stands in the training."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from offramp import vision_cure
from offramp.data.augment import Augment
from offramp.data.loader import Batch
from offramp.data.randomness import preserved_globals, sample_keys, seed_globals
from offramp.errors import OfframpError


class Mixed(NamedTuple):
    images: Tensor  # B, 3, H, W
    targets: Tensor  # B, C, rows sum to 1


def mix(
    batch: Batch,
    augment: Augment,
    *,
    num_classes: int,
    seed: int = 0,
    epoch: int = 0,
    index: int = 0,
) -> Mixed:
    """Mix the batch's images and turn its labels into (smoothed) target distributions.

    A pure function of the batch and (seed, epoch, index); processes that train together pass
    different indices (``index * world + rank``). timm's Mixup does the work, on any device, and
    leaves the batch's own images alone. Without mixup and CutMix only the labels are smoothed.
    """
    vision_cure.ensure()
    from timm.data.mixup import Mixup, mixup_target

    if not augment.mixup and not augment.cutmix:
        targets = mixup_target(batch.labels, num_classes, smoothing=augment.label_smoothing)
        return Mixed(batch.images, targets)
    if len(batch.labels) % 2:
        raise OfframpError(
            f"mixup and CutMix need an even batch size, this batch has {len(batch.labels)} images"
        )
    mixer = Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_probability,
        label_smoothing=augment.label_smoothing,
        num_classes=num_classes,
    )
    with preserved_globals():
        key = sample_keys(np.array([index]), seed=seed, epoch=epoch, stream="mix")
        seed_globals(int(key[0]))
        images, targets = mixer(batch.images.clone(), batch.labels)
    return Mixed(images, targets)
