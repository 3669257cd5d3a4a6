"""From the official parts of a data set to four splits that never share an image."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offramp.data.images import Images
from offramp.data.randomness import shuffled
from offramp.data.source import SPLITS, DataSource, Request, Split
from offramp.errors import OfframpError

TEST_SHARE = 0.1  # cut from train where a data set has no test part of its own


class Part(NamedTuple):
    """An official part: its images and their labels (N,), class numbers or other numbers."""

    images: Images
    labels: NDArray[np.int64] | NDArray[np.float32]


def cut(request: Request, classes: list[str], parts: Mapping[str, Part]) -> DataSource:
    """Cut the official parts ``train``, ``validation`` and ``test`` into a `DataSource`.

    Calibration and validation come out of train by a fixed permutation of the ids; an official
    validation part is the validation split, or the test split where there is no other. Without
    either, a tenth of train becomes the test split. Without train, the one part there is gives
    calibration and validation, and the rest of it is the test split. Training images that occur
    twice, or in another part, are dropped. Ids number train, validation and test one after another.
    """
    parts = {name: part for name, part in parts.items() if len(part.images)}
    if not parts:
        raise OfframpError(f"{request.spec}: the data set is empty")
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    starts = _starts(parts)
    if "train" in parts:
        rows = {"train": _unrepeated(parts)}
        if "test" in parts:
            rows["test"] = np.arange(len(parts["test"].images))
        else:
            count = _share(TEST_SHARE, len(rows["train"]))
            rows["test"], rows["train"] = _divide(rows["train"], count, stream="test")
        pool, source = rows["train"], "train"
    else:
        rows = {"train": np.empty(0, np.int64)}
        pool, source = np.arange(len(parts["test"].images)), "test"
    total = len(pool)
    rows["calibration"], pool = _divide(
        pool, _share(request.calibration, total), stream="calibration"
    )
    if "validation" in parts:
        rows["validation"] = np.arange(len(parts["validation"].images))
    else:
        rows["validation"], pool = _divide(
            pool, _share(request.validation, total), stream="validation"
        )
    rows[source] = pool
    origin = {
        "train": source,
        "calibration": source,
        "validation": "validation" if "validation" in parts else source,
        "test": "test" if "test" in parts else source,
    }

    def maker(name: str) -> Callable[[], Split]:
        part, at = parts[origin[name]], rows[name]
        return lambda: request.limited(
            Split(name, part.images, at, part.labels[at], at + starts[origin[name]])
        )

    return DataSource(request.spec, classes, {name: maker(name) for name in SPLITS})


def _starts(parts: Mapping[str, Part]) -> dict[str, int]:
    starts, start = {}, 0
    for name in ("train", "validation", "test"):
        starts[name] = start
        start += len(parts[name].images) if name in parts else 0
    return starts


def _share(fraction: float, total: int) -> int:
    return max(1, round(fraction * total)) if fraction > 0 else 0


def _divide(
    rows: NDArray[np.int64], count: int, *, stream: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``count`` of the rows by a fixed permutation, and the others; both ascending."""
    order = shuffled(rows, stream=f"cut {stream}")
    return np.sort(rows[order[:count]]), np.sort(rows[order[count:]])


def _unrepeated(parts: Mapping[str, Part]) -> NDArray[np.int64]:
    """Rows of train whose image occurs in no other part and not earlier in train."""
    seen: set[bytes] = set()
    for name in ("validation", "test"):
        if name in parts:
            images = parts[name].images
            seen.update(d for row in range(len(images)) if (d := images.digest(row)) is not None)
    rows = []
    images = parts["train"].images
    for row in range(len(images)):
        digest = images.digest(row)
        if digest is not None:
            if digest in seen:
                continue
            seen.add(digest)
        rows.append(row)
    return np.array(rows, np.int64)
