"""scikit-learn's handwritten digits: 1,797 real ones, 8×8 pixels."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from offramp.data.cutting import Part, cut
from offramp.data.images import ArrayImages, Pixels
from offramp.data.randomness import shuffled
from offramp.data.registry import register_dataset
from offramp.data.source import DataSource, Request

TEST_SHARE = 0.3


@cache
def digit_images() -> tuple[Pixels, NDArray[np.int64]]:
    """Grey images (1797, 8, 8) uint8 and the digits they show."""
    from sklearn.datasets import load_digits

    read = load_digits()
    return np.rint(read.images * (255 / 16)).astype(np.uint8), read.target.astype(np.int64)


def divided(shares: dict[str, float]) -> dict[str, NDArray[np.int64]]:
    """Divide the digit images into named parts, in the same shares for every digit."""
    _, digits = digit_images()
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in shares}
    for digit in range(10):
        rows = np.flatnonzero(digits == digit)
        rows = rows[shuffled(rows, stream="digits")]
        ends = np.rint(np.cumsum(list(shares.values())) * len(rows)).astype(int)
        for name, start, end in zip(shares, [0, *ends[:-1]], ends, strict=True):
            parts[name].append(rows[start:end])
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


@register_dataset("digits")
def digits(request: Request) -> DataSource:
    """Real handwritten digits, 8×8 pixels, 10 classes (scikit-learn, UCI)."""
    request.plain()
    images, labels = digit_images()
    rows = divided({"train": 1 - TEST_SHARE, "test": TEST_SHARE})
    parts = {name: Part(ArrayImages(images[at]), labels[at]) for name, at in rows.items()}
    return cut(request, [str(digit) for digit in range(10)], parts)
