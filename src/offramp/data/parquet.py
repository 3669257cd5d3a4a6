"""Images in parquet files, in the column layout of the `datasets` library."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offramp.data.cutting import Part, cut
from offramp.data.images import EncodedImages
from offramp.data.registry import register_dataset
from offramp.data.source import DataSource, Request
from offramp.errors import OfframpError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
PART_NAMES = {"train": "train", "test": "test", "val": "validation", "dev": "validation"}


@register_dataset("parquet")
def parquet(
    request: Request,
    *,
    image: str | None = None,
    label: str | None = None,
    num_classes: int | None = None,
) -> DataSource:
    """parquet:PATH, a file or a folder of train*, test*, validation* files (image bytes, label)."""
    return open_parquet(request, request.path(), image=image, label=label, num_classes=num_classes)


def open_parquet(
    request: Request,
    path: Path,
    *,
    image: str | None = None,
    label: str | None = None,
    num_classes: int | None = None,
) -> DataSource:
    """Open the parquet files below ``path``.

    Columns are found by name (image or img; label, labels or fine_label) unless given. Class names
    come from the files' metadata, or are the labels themselves; ``num_classes`` widens those, for
    parts that do not show every class. Files named neither test* nor val*/dev* count as train.
    """
    read = {part: _read(group, image, label) for part, group in parquet_parts(path).items()}
    classes = _classes(list(read.values()), num_classes)
    return cut(request, classes, {part: _numbered(r, classes) for part, r in read.items()})


def parquet_parts(path: Path) -> dict[str, list[Path]]:
    """The parquet files below ``path`` by official part; those of no known name are train's."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise OfframpError(f"{path}: no .parquet file here")
    grouped: dict[str, list[Path]] = {}
    for file in files:
        start = (key for key in PART_NAMES if file.name.startswith(key))
        grouped.setdefault(PART_NAMES[next(start, "train")], []).append(file)
    return grouped


def images_and(files: list[Path], column: str) -> tuple[EncodedImages, list[Any]]:
    """The images of some files in one collection, and what ``column`` says of each."""
    import pyarrow as pa

    chunks: list[Any] = []
    values: list[Any] = []
    origins: list[tuple[Path, int]] = []
    for file in files:
        table = _table(file)
        image_column = _column(file, table, None, IMAGE_COLUMNS, "image")
        _column(file, table, column, (), column)
        chunks += _image_bytes(file, table, image_column).chunks
        values += table[column].to_pylist()
        origins.append((file, table.num_rows))
    return EncodedImages(pa.chunked_array(chunks, pa.large_binary()), origins), values


class _Read(NamedTuple):
    images: EncodedImages
    labels: list[Any]  # as stored: numbers or names
    names: list[str] | None  # class names from the metadata


def _read(files: list[Path], image: str | None, label: str | None) -> _Read:
    import pyarrow as pa

    chunks: list[Any] = []
    labels: list[Any] = []
    origins: list[tuple[Path, int]] = []
    names: list[str] | None = None
    for file in files:
        table = _table(file)
        if not table.num_rows:
            continue  # its column types say nothing
        image_column = _column(file, table, image, IMAGE_COLUMNS, "image")
        label_column = _column(file, table, label, LABEL_COLUMNS, "label")
        stored = _stored_names(table.schema.metadata, label_column)
        if names and stored and stored != names:
            raise OfframpError(f"{file}: other class names than {files[0]}")
        names = names or stored
        chunks += _image_bytes(file, table, image_column).chunks
        labels += _labels(file, table, label_column)
        origins.append((file, table.num_rows))
    return _Read(EncodedImages(pa.chunked_array(chunks, pa.large_binary()), origins), labels, names)


def _table(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise OfframpError(f"{file}: not a readable parquet file ({error})") from None


def _image_bytes(file: Path, table: Any, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise OfframpError(f"{file}: column {name!r} is {kind}, expected image bytes")
    return column.cast(pa.large_binary())


def _labels(file: Path, table: Any, name: str) -> list[Any]:
    import pyarrow as pa

    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
        raise OfframpError(
            f"{file}: column {name!r} is {column.type}, expected class numbers or names"
        )
    values: list[Any] = column.to_pylist()
    if None in values:
        raise OfframpError(f"{file}: row {values.index(None)} has no label")
    return values


def _column(file: Path, table: Any, asked: str | None, known: tuple[str, ...], kind: str) -> str:
    columns = table.column_names
    for name in [asked] if asked else known:
        if name in columns:
            return name
    wanted = repr(asked) if asked else " or ".join(repr(name) for name in known)
    raise OfframpError(
        f"{file}: no {kind} column {wanted} (columns: {', '.join(columns)}; option: {kind})"
    )


def _stored_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        stored = json.loads((metadata or {})[b"huggingface"])
        return [str(name) for name in stored["info"]["features"][label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _classes(read: list[_Read], num_classes: int | None) -> list[str]:
    names = next((part.names for part in read if part.names), None)
    if names:
        return names
    values = {value for part in read for value in part.labels}
    if any(isinstance(value, str) for value in values):
        return sorted(str(value) for value in values)
    return [str(i) for i in range(num_classes or max(values, default=-1) + 1)]


def _numbered(read: _Read, classes: list[str]) -> Part:
    """The part with its labels as class numbers, or `OfframpError` naming the first wrong row."""
    number = {name: index for index, name in enumerate(classes)}
    labels = [number.get(v, v) if isinstance(v, str) else v for v in read.labels]
    for row, label in enumerate(labels):
        if isinstance(label, str) or not 0 <= label < len(classes):
            raise OfframpError(
                f"{read.images.place(row)}: label {label!r} is none of the {len(classes)} classes"
            )
    return Part(read.images, np.array(labels, np.int64))
