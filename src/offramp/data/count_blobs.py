"""Counting for tests and first steps: noisy pictures of up to nine bright discs, made on the fly.

An image is a 4×4 grid of 6×6 cells; so many of them hold a disc of random size, brightness and
place within its cell, and the label is how many. Discs never overlap, so the count is what one
sees; faint small ones in much noise are hard.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.data.images import ArrayImages
from offramp.data.randomness import sample_keys, uniforms
from offramp.data.registry import register_dataset
from offramp.data.source import SPLITS, DataSource, Request, Split
from offramp.errors import OfframpError, suggest

SIZES = {"train": 4_000, "calibration": 1_000, "validation": 500, "test": 1_500}
MOST = 1_000_000  # ids number the pictures of a split from a multiple of this
GRID, CELL = 4, 6
LARGEST = 9
_CELLS = GRID * GRID


@register_dataset("count-blobs")
def count_blobs(request: Request, *, sizes: Mapping[str, int] | None = None) -> DataSource:
    """Up to nine discs in noise, 24×24 pixels; the label is their number (regression).

    ``sizes`` are pictures per split (per epoch for train, whose pictures are new in every epoch;
    the other splits' are fixed). Splits have the attribute ``blobs``, how many there are.
    """
    request.plain()
    chosen = SIZES | dict(sizes or {})
    for name, size in chosen.items():
        if name not in SIZES:
            raise OfframpError(f"count-blobs: option sizes: {suggest('split', name, SIZES)}")
        if not 0 <= size <= MOST:
            raise OfframpError(f"count-blobs: sizes.{name} = {size}, use 0 to {MOST}")
    makers = {
        name: lambda name=name: request.limited(_split(name, chosen[name])) for name in SPLITS
    }
    return DataSource(request.spec, ["blobs"], makers, task="regression")


def _split(name: str, size: int, epoch: int = 0) -> Split:
    images, counts = draw(name, size, epoch=epoch)
    return Split(
        name,
        ArrayImages(images),
        np.arange(size),
        counts.astype(np.float32),
        np.arange(size) + SPLITS.index(name) * MOST,
        attributes={"blobs": torch.from_numpy(counts)},
        epochs=(lambda epoch: _split(name, size, epoch)) if name == "train" else None,
    )


def draw(split: str, size: int, *, epoch: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``size`` pictures (N, 24, 24) and their counts (N,).

    Picture i depends on the split, the epoch and i only.
    """
    keys = sample_keys(np.arange(size), epoch=epoch, stream=f"count-blobs {split}")
    draws = uniforms(keys, 2 + 5 * _CELLS + (GRID * CELL) ** 2)
    counts = (draws[:, 0] * (LARGEST + 1)).astype(np.int64)
    level, rest = 0.3 * draws[:, 1], draws[:, 2:]
    order, radius, light, across, down = (
        rest[:, : 5 * _CELLS].reshape(size, 5, _CELLS).swapaxes(0, 1)
    )
    shown = order.argsort(axis=1).argsort(axis=1) < counts[:, None]  # N, cells
    place = np.arange(CELL) - (CELL - 1) / 2  # of pixels, from the middle of their cell
    x = place[None, None, None, :] - (across[..., None, None] - 0.5)  # N, cells, 1, 6
    y = place[None, None, :, None] - (down[..., None, None] - 0.5)
    edge = (1 + 1.2 * radius)[..., None, None] + 0.5 - np.hypot(x, y)  # N, cells, 6, 6
    discs = edge.clip(0, 1) * (0.45 + 0.35 * light)[..., None, None] * shown[..., None, None]
    tiled = discs.reshape(size, GRID, GRID, CELL, CELL).swapaxes(2, 3)
    pictures = tiled.reshape(size, GRID * CELL, GRID * CELL)
    noise = rest[:, 5 * _CELLS :].reshape(pictures.shape) * level[:, None, None]
    return np.rint(255 * (pictures + noise).clip(0, 1)).astype(np.uint8), counts
