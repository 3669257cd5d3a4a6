"""Where images lie: in one array, encoded in memory, or in files."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from offramp.errors import OfframpError

Pixels = NDArray[np.uint8]
SMALL = 64  # images up to this side are kept decoded, and resized whole instead of cropped
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif")


class Images(Protocol):
    """A numbered collection of RGB images."""

    def __len__(self) -> int: ...

    def open(self, row: int) -> Image.Image:
        """Image ``row`` as RGB, or `OfframpError` naming its file or row."""
        ...

    def digest(self, row: int) -> bytes | None:
        """A hash of the content, or None where that would mean reading the whole data set."""
        ...

    def pixels(self, rows: NDArray[np.int64]) -> Pixels | None:
        """``rows`` as (n, H, W, 3), or grey (n, H, W), if all are small and equal-sized."""
        ...


class ArrayImages:
    """Images that are one uint8 array, (N, H, W, 3) or grey (N, H, W)."""

    def __init__(self, array: Pixels) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.array[row]).convert("RGB")

    def digest(self, row: int) -> bytes | None:
        return hashlib.blake2b(self.array[row].tobytes(), digest_size=16).digest()

    def pixels(self, rows: NDArray[np.int64]) -> Pixels | None:
        return self.array[rows] if max(self.array.shape[1:3]) <= SMALL else None


class EncodedImages:
    """Encoded images in memory, decoded when asked for.

    ``column`` is anything whose entries give ``as_buffer()`` (a pyarrow binary column); ``origins``
    holds (file, number of rows) in order, so that errors can name the place.
    """

    def __init__(self, column: Any, origins: Sequence[tuple[Path, int]]) -> None:
        self.column, self.origins = column, origins

    def __len__(self) -> int:
        return len(self.column)

    def _bytes(self, row: int) -> bytes:
        value = self.column[row].as_py()
        if not value:
            raise OfframpError(f"{self.place(row)}: no image bytes")
        return bytes(value)

    def place(self, row: int) -> str:
        """File and row within it, for messages."""
        for file, count in self.origins:
            if row < count:
                return f"{file}: row {row}"
            row -= count
        raise IndexError(row)

    def open(self, row: int) -> Image.Image:
        return _decode(io.BytesIO(self._bytes(row)), self.place(row))

    def size(self, row: int) -> tuple[int, int]:
        """Width and height, without decoding."""
        with _opened(io.BytesIO(self._bytes(row)), self.place(row)) as image:
            return image.size

    def digest(self, row: int) -> bytes | None:
        return hashlib.blake2b(self._bytes(row), digest_size=16).digest()

    def pixels(self, rows: NDArray[np.int64]) -> Pixels | None:
        if not len(rows):
            return None
        size = self.open(int(rows[0])).size
        if max(size) > SMALL:
            return None
        array = np.empty((len(rows), size[1], size[0], 3), np.uint8)
        for position, row in enumerate(rows.tolist()):
            image = self.open(row)
            if image.size != size:
                return None
            array[position] = np.asarray(image)
        return array


class FileImages:
    """Images in files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, row: int) -> Image.Image:
        return read_image(self.paths[row])

    def digest(self, row: int) -> bytes | None:
        return None

    def pixels(self, rows: NDArray[np.int64]) -> Pixels | None:
        return None


def read_image(path: Path | str) -> Image.Image:
    """Read an image file as RGB, or raise `OfframpError` naming it."""
    if not Path(path).is_file():
        raise OfframpError(f"{path}: no such image file")
    return _decode(path, str(path))


def _decode(file: Any, place: str) -> Image.Image:
    with _opened(file, place) as image:
        return image.convert("RGB")


@contextmanager
def _opened(file: Any, place: str) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    # Pillow's decoders answer broken bytes with all of these.
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        reason = "not an image Pillow knows" if "cannot identify" in str(error) else str(error)
        raise OfframpError(f"{place}: the image cannot be read ({reason})") from None
