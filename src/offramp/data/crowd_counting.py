"""Crowd counting: photos with the place of every head, cut into a grid of crops.

Counts are learned per crop, as TransCrowd does: the crops' counts add up to the photo's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.data.cutting import Part, cut
from offramp.data.images import SMALL, Pixels
from offramp.data.parquet import images_and, parquet_parts
from offramp.data.registry import register_dataset
from offramp.data.source import SPLITS, DataSource, Request, Split
from offramp.errors import OfframpError

Grid = tuple[int, int]
GRID: Grid = (3, 4)  # of a 4:3 photo: square crops, twelve of them
WHOLE = "photo"
"""The attribute of crops that names the photo they add up to."""


@register_dataset("crowd-counting")
def crowd_counting(request: Request, *, crops: Grid = GRID) -> DataSource:
    """crowd-counting:PATH, a folder of train*, test* parquet files (image, points) (regression).

    ``crops`` are rows and columns that a photo is cut into. Splits are cut, and limited, by photo:
    no two splits share one. The attribute ``photo`` of a crop says what its count is a part of.
    """
    return _open(request, request.path(), crops)


@register_dataset("shanghaitech-b")
def shanghaitech_b(request: Request, *, crops: Grid = GRID) -> DataSource:
    """ShanghaiTech part B: the people in 716 street photos (Zhang et al. 2016) (regression).

    The parquet files of `crowd_counting` in ROOT/shanghaitech-b, or shanghaitech-b:PATH.
    """
    path = request.path() if request.argument else request.root / request.name
    if not path.exists():
        raise OfframpError(
            f"{request.name} is not in {path}; give {request.name}:PATH, or point the environment "
            "variable OFFRAMP_DATA at the folder that holds it"
        )
    return _open(request, path, crops)


def _open(request: Request, path: Path, crops: Grid) -> DataSource:
    if min(crops) < 1:
        raise OfframpError(
            f"{request.name}: crops = {list(crops)}, use at least one row and column"
        )
    parts = {}
    for name, files in parquet_parts(path).items():
        photos = Photos(files, crops)
        parts[name] = Part(photos, photos.counts.sum(axis=1))
    whole = cut(request, ["people"], parts)
    makers = {name: lambda name=name: _crops(whole, name) for name in SPLITS}
    return DataSource(request.spec, ["people"], makers, task="regression", whole=WHOLE)


def _crops(whole: DataSource, name: str) -> Split:
    """A split of photos as a split of their crops; crop j of photo i has id i · crops + j."""
    photos = whole.split(name)
    assert isinstance(photos.images, Photos)
    per = photos.images.per_photo
    within = np.arange(per)

    def each(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return (values[:, None] * per + within).reshape(-1)

    return Split(
        name,
        Crops(photos.images),
        each(photos.rows),
        photos.images.counts[photos.rows].reshape(-1),
        each(photos.ids.numpy()),
        attributes={WHOLE: photos.ids.repeat_interleave(per)},
    )


class Photos:
    """Photos of a part, decoded once and kept, with the number of heads in each crop.

    Attributes:
        counts: (photos, crops) float32; rows add up to the photos' counts.
    """

    def __init__(self, files: list[Path], grid: Grid) -> None:
        self.encoded, points = images_and(files, "points")
        self.grid, self.per_photo = grid, grid[0] * grid[1]
        counted = [
            heads_per_crop(places, self.encoded.size(row), grid)
            for row, places in enumerate(points)
        ]
        self.counts = np.array(counted, np.float32).reshape(len(self.encoded), self.per_photo)
        self._decoded: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self.encoded)

    def open(self, row: int) -> Image.Image:
        return self.encoded.open(row)

    def digest(self, row: int) -> bytes | None:
        return self.encoded.digest(row)

    def pixels(self, rows: NDArray[np.int64]) -> Pixels | None:
        return self.encoded.pixels(rows)

    def crop(self, row: int, place: int) -> Pixels:
        """Crop ``place`` of a photo, counted row by row: (h, w, 3)."""
        if row not in self._decoded:
            self._decoded[row] = np.asarray(self.open(row))
        photo = self._decoded[row]
        down, across = divmod(place, self.grid[1])
        rows, columns = (borders(*pair) for pair in zip(photo.shape, self.grid, strict=False))
        return photo[rows[down] : rows[down + 1], columns[across] : columns[across + 1]]


class Crops:
    """The crops of photos, numbered photo by photo."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos) * self.photos.per_photo

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.photos.crop(*divmod(row, self.photos.per_photo)))

    def digest(self, row: int) -> bytes | None:
        return None

    def pixels(self, rows: NDArray[np.int64]) -> Pixels | None:
        first = self.open(int(rows[0])).size if len(rows) else (SMALL + 1, 0)
        if max(first) > SMALL:
            return None
        crops = [self.photos.crop(*divmod(row, self.photos.per_photo)) for row in rows.tolist()]
        return np.stack(crops) if len({crop.shape for crop in crops}) == 1 else None


def borders(size: int, parts: int) -> list[int]:
    """Where ``size`` pixels are cut into parts of about equal length, both ends included."""
    return [part * size // parts for part in range(parts + 1)]


def heads_per_crop(
    points: Sequence[Sequence[float]], size: tuple[int, int], grid: Grid
) -> list[int]:
    """How many of the points (x, y) lie in each crop; those beyond the edge count at the edge.

    Args:
        size: width and height of the photo.
        grid: rows and columns.
    """
    counts = np.zeros(grid, np.int64)
    places = np.asarray(points or [], np.float64).reshape(-1, 2)
    across = np.searchsorted(borders(size[0], grid[1])[1:-1], places[:, 0], side="right")
    down = np.searchsorted(borders(size[1], grid[0])[1:-1], places[:, 1], side="right")
    np.add.at(counts, (down, across), 1)
    flat: list[int] = counts.reshape(-1).tolist()
    return flat
