"""Small data sets written to disk, and what a model expects of its images."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def preprocessing(
    size: tuple[int, int] = (24, 24), interpolation: str = "bicubic", crop_pct: float | None = 0.9
) -> Any:
    return SimpleNamespace(
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        image_size=size,
        interpolation=interpolation,
        crop_pct=crop_pct,
    )


def noise(count: int, size: tuple[int, ...] = (8, 8, 3), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *size), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    struct: bool = True,
) -> Path:
    column: Any = [{"bytes": image, "path": None} for image in images] if struct else list(images)
    table = pa.table({columns[0]: column, columns[1]: list(labels)})
    if names:
        info = {"info": {"features": {columns[1]: {"names": list(names)}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def parquet_folder(folder: Path, *, train: int = 60, test: int = 12) -> Path:
    pixels = [encoded(image) for image in noise(train + test)]
    labels = [index % 3 for index in range(train + test)]
    names = ["ant", "bee", "cat"]
    half = train // 2
    write_parquet(folder / "train-0.parquet", pixels[:half], labels[:half], names=names)
    write_parquet(folder / "train-1.parquet", pixels[half:train], labels[half:train], names=names)
    write_parquet(folder / "test-0.parquet", pixels[train:], labels[train:], names=names)
    return folder


def image_folder(
    folder: Path, parts: dict[str, int], *, size: tuple[int, ...] = (90, 80, 3), seed: int = 1
) -> Path:
    """PNG files in ``folder``/PART/CLASS for two classes; part "" is the folder itself."""
    for offset, (part, count) in enumerate(parts.items()):
        for index, image in enumerate(noise(count, size, seed=seed + offset)):
            path = folder / part / ("dog", "cat")[index % 2] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder
