"""Batches whose order and content are a pure function of (seed, epoch, index)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from offramp.data.augment import Augment, Preprocessing
from offramp.data.randomness import sample_keys, shuffled
from offramp.data.source import Split
from offramp.data.transforms import Transform
from offramp.errors import OfframpError


class Batch(NamedTuple):
    images: Tensor  # B, 3, H, W float32
    labels: Tensor  # B int64, or float32 where they are numbers
    ids: Tensor  # B int64


class Batches(Iterator[Batch]):
    """The batches that are left; ``len`` counts them from ``start``."""

    def __init__(self, batches: Iterator[Batch], length: int) -> None:
        self._batches, self._length = batches, length

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Batch:
        return next(self._batches)


def batches(
    split: Split,
    *,
    batch_size: int,
    preprocessing: Preprocessing,
    augment: Augment | None = None,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool | None = None,
    order: NDArray[np.int64] | None = None,
    with_images: bool = True,
) -> Batches:
    """Batches of ``batch_size`` per process, in order, or shuffled and augmented for training.

    A sample's augmentation depends on (seed, epoch, id), the order on (seed, epoch): ``start``
    skips batches without making them, and any number of ``workers`` gives the same batches.
    Process ``rank`` of ``world`` takes its slice of every batch of ``batch_size * world``.
    ``drop_last`` (default: when training) leaves out the last incomplete batch. ``order`` holds
    positions in the split, possibly repeated, to be met instead. Without images, as where features
    are cached, they are (B, 0) and nothing is decoded. Raises `OfframpError` if not one batch is
    left then, and for images that cannot be read.
    """
    if batch_size < 1 or start < 0:
        raise OfframpError(
            f"batch_size = {batch_size}, start = {start}: use at least 1 and at least 0"
        )
    split = split.at_epoch(epoch) if train else split
    drop = train if drop_last is None else drop_last
    ids = split.ids.numpy()
    if order is None:
        plain = np.arange(len(split))
        order = shuffled(ids, seed=seed, epoch=epoch, stream="order") if train else plain
    plan = _plan(split.name, order, batch_size=batch_size, world=world, rank=rank, drop_last=drop)
    transform = Transform(preprocessing, augment=augment, train=train)
    if transform.batched and with_images:
        split.pixels()  # decoded once here, not in every worker
    produce = _Producer(
        split, plan[start:], transform, seed=seed, epoch=epoch, with_images=with_images
    )
    left = len(produce)
    if not workers:
        return Batches((produce[index] for index in range(left)), left)
    loader = DataLoader(
        produce,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    return Batches(iter(loader), left)


def _plan(
    name: str,
    order: NDArray[np.int64],
    *,
    batch_size: int,
    world: int,
    rank: int,
    drop_last: bool,
) -> list[NDArray[np.int64]]:
    """Positions of every batch of this process."""
    step = batch_size * world
    count = len(order) // step if drop_last else math.ceil(len(order) / step)
    if not count:
        raise OfframpError(
            f"the {name} split has {len(order)} images, fewer than one batch of {step}: "
            "use a smaller batch size"
        )
    first = rank * batch_size
    whole = [order[index * step : (index + 1) * step] for index in range(count)]
    mine = [part[first : first + batch_size] for part in whole]
    return [part for part in mine if len(part)]


class _Producer(Dataset[Batch]):
    """Item i is the i-th batch of the plan."""

    def __init__(
        self,
        split: Split,
        plan: list[NDArray[np.int64]],
        transform: Transform,
        *,
        seed: int,
        epoch: int,
        with_images: bool = True,
    ) -> None:
        self.split, self.plan, self.transform = split, plan, transform
        self.seed, self.epoch, self.with_images = seed, epoch, with_images

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        positions = self.plan[index]
        at = torch.from_numpy(positions)
        ids = self.split.ids[at]
        if not self.with_images:
            return Batch(torch.empty(len(at), 0), self.split.labels[at], ids)
        keys = sample_keys(ids.numpy(), seed=self.seed, epoch=self.epoch, stream="augment")
        pixels = self.split.pixels() if self.transform.batched else None
        if pixels is not None:
            images = self.transform.many(pixels[positions], keys)
        else:
            images = torch.stack(
                [
                    self.transform.one(self.split[int(position)][0], keys[i : i + 1])
                    for i, position in enumerate(positions)
                ]
            )
        return Batch(images, self.split.labels[at], ids)
