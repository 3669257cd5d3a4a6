"""Compositions of real digits whose difficulty grows with their number: the embedded default.

An image is a 2×2 grid of 8×8 cells with one to four handwritten digits in it; the label is the
largest digit. Every split draws from digit images of its own, so nothing is shared.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.data.digits import digit_images, divided
from offramp.data.images import ArrayImages
from offramp.data.randomness import sample_keys, uniforms
from offramp.data.registry import register_dataset
from offramp.data.source import SPLITS, DataSource, Request, Split
from offramp.errors import OfframpError, suggest

SIZES = {"train": 16_000, "calibration": 4_000, "validation": 2_000, "test": 6_000}
POOLS = {"train": 0.6, "calibration": 0.15, "validation": 0.05, "test": 0.2}  # of the digit images
MOST = 1_000_000  # ids number the compositions of a split from a multiple of this


@register_dataset("digits-grid")
def digits_grid(request: Request, *, sizes: Mapping[str, int] | None = None) -> DataSource:
    """2×2 grids of one to four real digits, 16×16 pixels; the label is the largest digit.

    ``sizes`` are compositions per split (per epoch for train, whose compositions are new in every
    epoch; the other splits' are fixed). Splits have the attribute ``digits``, how many there are.
    """
    request.plain()
    chosen = SIZES | dict(sizes or {})
    for name, size in chosen.items():
        if name not in SIZES:
            raise OfframpError(f"digits-grid: option sizes: {suggest('split', name, SIZES)}")
        if not 0 <= size <= MOST:
            raise OfframpError(f"digits-grid: sizes.{name} = {size}, use 0 to {MOST}")
    makers = {
        name: lambda name=name: request.limited(_split(name, chosen[name])) for name in SPLITS
    }
    return DataSource(request.spec, [str(digit) for digit in range(10)], makers)


def _split(name: str, size: int, epoch: int = 0) -> Split:
    images, labels, digits = compose(name, size, epoch=epoch)
    return Split(
        name,
        ArrayImages(images),
        np.arange(size),
        labels,
        np.arange(size) + SPLITS.index(name) * MOST,
        attributes={"digits": torch.from_numpy(digits)},
        epochs=(lambda epoch: _split(name, size, epoch)) if name == "train" else None,
    )


def compose(
    split: str, size: int, *, epoch: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Draw ``size`` compositions: images (N, 16, 16), labels (N,), digits per image (N,).

    Composition i depends on the split, the epoch and i only.
    """
    rows, shown = drawn(split, size, epoch=epoch)
    pixels, digits = digit_images()
    cells = np.where(shown[:, :, None, None], pixels[rows], 0).astype(np.uint8)  # N, 4, 8, 8
    grid = cells.reshape(size, 2, 2, 8, 8).transpose(0, 1, 3, 2, 4).reshape(size, 16, 16)
    labels = np.where(shown, digits[rows], -1).max(axis=1, initial=-1)
    return np.ascontiguousarray(grid), labels, shown.sum(axis=1)


def drawn(split: str, size: int, *, epoch: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which digit image lies in each cell (N, 4), and whether the cell shows it (N, 4)."""
    pool = divided(POOLS)[split]
    keys = sample_keys(np.arange(size), epoch=epoch, stream=f"digits-grid {split}")
    draws = uniforms(keys, 9)
    rows = pool[(draws[:, :4] * len(pool)).astype(np.int64)]
    rank = draws[:, 4:8].argsort(axis=1).argsort(axis=1)  # a random order of the four cells
    count = 1 + (draws[:, 8:] * 4).astype(np.int64)
    return rows, rank < count
