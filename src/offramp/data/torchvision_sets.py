"""The named photo data sets, from parquet files or through torchvision's loaders."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from offramp import vision_cure
from offramp.data.cutting import Part, cut
from offramp.data.images import ArrayImages, FileImages, Images
from offramp.data.parquet import open_parquet
from offramp.data.registry import register_dataset
from offramp.data.source import DataSource, Request
from offramp.errors import OfframpError

# What torchvision raises for files that are absent, cut off, or cannot be fetched.
_BROKEN = (RuntimeError, OSError, ValueError, AssertionError)


@register_dataset("cifar10")
def cifar10(request: Request) -> DataSource:
    """CIFAR-10: 60,000 photos at 32 px, 10 classes (Krizhevsky 2009)."""
    return _open(request, "CIFAR10", train={"train": True}, test={"train": False})


@register_dataset("cifar100")
def cifar100(request: Request) -> DataSource:
    """CIFAR-100: 60,000 photos at 32 px, 100 classes (Krizhevsky 2009)."""
    return _open(request, "CIFAR100", train={"train": True}, test={"train": False})


@register_dataset("fashionmnist")
def fashionmnist(request: Request) -> DataSource:
    """Fashion-MNIST: 70,000 grey garments at 28 px, 10 classes (Xiao et al. 2017)."""
    return _open(request, "FashionMNIST", train={"train": True}, test={"train": False})


@register_dataset("svhn")
def svhn(request: Request) -> DataSource:
    """SVHN: 99,289 house-number digits at 32 px, 10 classes (Netzer et al. 2011)."""
    return _open(request, "SVHN", train={"split": "train"}, test={"split": "test"})


@register_dataset("food101")
def food101(request: Request) -> DataSource:
    """Food-101: 101,000 photos of dishes, 101 classes (Bossard et al. 2014)."""
    return _open(request, "Food101", train={"split": "train"}, test={"split": "test"})


@register_dataset("flowers102")
def flowers102(request: Request) -> DataSource:
    """Flowers-102: 8,189 photos, 102 classes (Nilsback and Zisserman 2008), its own validation."""
    kinds = {"train": "train", "validation": "val", "test": "test"}
    return _open(request, "Flowers102", **{part: {"split": kind} for part, kind in kinds.items()})


def _open(request: Request, loader: str, **parts: dict[str, Any]) -> DataSource:
    """Parquet files in ROOT/NAME if there are any, else torchvision's layout in ROOT."""
    request.plain()
    folder = request.root / request.name
    if folder.is_dir() and any(folder.rglob("*.parquet")):
        return open_parquet(request, folder)
    sets = {part: _load(request, loader, arguments) for part, arguments in parts.items()}
    read = {part: Part(*_content(data)) for part, data in sets.items()}
    first = sets["train"]
    most = max(int(part.labels.max()) for part in read.values())
    classes = getattr(first, "classes", None) or [str(i) for i in range(most + 1)]
    return cut(request, [str(name) for name in classes], read)


def _load(request: Request, loader: str, arguments: dict[str, Any]) -> Any:
    vision_cure.ensure()
    from torchvision import datasets

    make, root = getattr(datasets, loader), request.root
    allowed = os.environ.get("OFFRAMP_DOWNLOAD", "1") != "0"
    try:
        return make(str(root), download=False, **arguments)
    except _BROKEN:
        if not allowed:
            raise OfframpError(
                _missing(request, "OFFRAMP_DOWNLOAD=0 forbids fetching it")
            ) from None
    existed = root.exists()
    try:
        return make(str(root), download=True, **arguments)
    except _BROKEN as error:
        if not existed and root.is_dir():
            _remove_empty(root)
        raise OfframpError(_missing(request, f"fetching it failed: {error}")) from None


def _missing(request: Request, why: str) -> str:
    return (
        f"{request.name} is not (whole) in {request.root} and {why}; put torchvision's files "
        f"there or parquet files in {request.root / request.name}, or point the environment "
        "variable OFFRAMP_DATA at the folder that holds them"
    )


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _content(data: Any) -> tuple[Images, Any]:
    """Images and labels of a torchvision data set, without decoding a file."""
    labels = next(
        getattr(data, name) for name in ("targets", "labels", "_labels") if hasattr(data, name)
    )
    labels = np.asarray(labels, dtype=np.int64)
    if hasattr(data, "_image_files"):
        return FileImages([Path(path) for path in data._image_files]), labels
    array = np.asarray(data.data)
    if array.ndim == 4 and array.shape[1] == 3:  # SVHN keeps (N, 3, H, W)
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    return ArrayImages(array), labels
