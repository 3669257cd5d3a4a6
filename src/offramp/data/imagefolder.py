"""Image files in one folder per class."""

from pathlib import Path

import numpy as np

from offramp.data.cutting import Part, cut
from offramp.data.images import SUFFIXES, FileImages
from offramp.data.registry import register_dataset
from offramp.data.source import DataSource, Request
from offramp.errors import OfframpError

PART_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@register_dataset("imagefolder")
def imagefolder(request: Request) -> DataSource:
    """imagefolder:PATH, a folder per class, directly or below train, test, val or validation."""
    path = request.path()
    if not path.is_dir():
        raise OfframpError(f"{path}: not a folder")
    found = {part: path / name for name, part in PART_NAMES.items() if (path / name).is_dir()}
    if "train" not in found and set(_folders(path)) - set(PART_NAMES):
        found = {"train": path}  # class folders, even if one class is called "test"
    names = {part: _folders(folder) for part, folder in found.items()}
    classes = names.get("train") or sorted({name for listed in names.values() for name in listed})
    parts = {}
    for part, folder in found.items():
        unknown = sorted(set(names[part]) - set(classes))
        if unknown:
            raise OfframpError(f"{folder}: class folder {unknown[0]!r} does not occur in train")
        parts[part] = _part(folder, classes)
    return cut(request, classes, parts)


def _folders(folder: Path) -> list[str]:
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise OfframpError(f"{folder}: no class folders here (expected {folder}/CLASS/image files)")
    return names


def _part(folder: Path, classes: list[str]) -> Part:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = (path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        mine = sorted(path for path in files if path.is_file())
        paths += mine
        labels += [label] * len(mine)
    return Part(FileImages(paths), np.array(labels, np.int64))
