"""Data sets as named splits that never share an image."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, ValidationError, validate_call
from torch import Tensor
from torch.utils.data import Dataset

from offramp.data.images import Images, Pixels
from offramp.data.randomness import shuffled
from offramp.data.registry import DATASETS
from offramp.errors import OfframpError, suggest
from offramp.tasks import Target

SPLITS = ("train", "calibration", "validation", "test")


class Split(Dataset[tuple[Image.Image, float, int]]):
    """A part of a data set: item i is (RGB image, label, id).

    ``labels`` (N,) are int64 class numbers, or float32 where the data set is one of numbers;
    ``ids`` are int64 (N,); an id names one image of the source, whatever the split
    sizes. ``attributes`` are further facts per sample (N,). A split that ``varies`` shows other
    images every epoch: `at_epoch` gives that epoch's.
    """

    def __init__(
        self,
        name: str,
        images: Images,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64] | NDArray[np.float32],
        ids: NDArray[np.int64],
        *,
        attributes: Mapping[str, Tensor] | None = None,
        epochs: "Callable[[int], Split] | None" = None,
    ) -> None:
        self.name, self.images, self.rows = name, images, rows
        kind = np.float32 if np.issubdtype(np.asarray(labels).dtype, np.floating) else np.int64
        self.labels = torch.from_numpy(np.ascontiguousarray(labels, dtype=kind))
        self.ids = torch.from_numpy(np.ascontiguousarray(ids, dtype=np.int64))
        self.attributes = dict(attributes or {})
        self._epochs = epochs
        self._pixels: Pixels | None = None
        self._pixels_known = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Image.Image, float, int]:
        image = self.images.open(int(self.rows[position]))
        return image, self.labels[position].item(), int(self.ids[position])

    def __getstate__(self) -> dict[str, Any]:
        # What a loader's worker gets is one epoch's images; closures do not pickle.
        return {**self.__dict__, "_epochs": None}

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} images)"

    @property
    def varies(self) -> bool:
        return self._epochs is not None

    def at_epoch(self, epoch: int) -> "Split":
        """This split as it looks in ``epoch``: itself, unless it varies."""
        return self._epochs(epoch) if self._epochs else self

    def pixels(self) -> Pixels | None:
        """All images as one uint8 array (N, H, W, 3) or grey (N, H, W), if small and equal-sized.

        Decoded at the first call and kept.
        """
        if not self._pixels_known:
            self._pixels, self._pixels_known = self.images.pixels(self.rows), True
        return self._pixels

    def take(self, positions: NDArray[np.int64] | Tensor | list[int]) -> "Split":
        """The samples at ``positions``, in that order."""
        at = np.asarray(positions, dtype=np.int64)
        epochs = self._epochs
        return Split(
            self.name,
            self.images,
            self.rows[at],
            self.labels.numpy()[at],
            self.ids.numpy()[at],
            attributes={key: value[torch.from_numpy(at)] for key, value in self.attributes.items()},
            epochs=(lambda epoch: epochs(epoch).take(at)) if epochs else None,
        )

    def limited(self, limit: int | None) -> "Split":
        """At most ``limit`` samples, drawn without regard to order: smaller draws are nested."""
        if limit is None or limit >= len(self):
            return self
        return self.take(np.sort(shuffled(self.ids.numpy(), stream="limit")[:limit]))


class DataSource:
    """A data set: its classes and its splits train, calibration, validation and test.

    ``splits`` maps each name to a function that makes the split when it is first asked for. With
    ``task="regression"`` labels are numbers, and the one class is what they count; ``whole`` then
    names the attribute that says which of them add up.
    """

    kind = "image"
    channels = 3

    def __init__(
        self,
        name: str,
        classes: list[str],
        splits: Mapping[str, Callable[[], Split]],
        *,
        task: Literal["classification", "regression"] = "classification",
        whole: str | None = None,
    ) -> None:
        self.name, self.classes, self.whole = name, classes, whole
        self.task: Literal["classification", "regression"] = task
        self._makers = dict(splits)
        self._made: dict[str, Split] = {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def target(self) -> Target | None:
        """Mean and spread of the training split's numbers; None where labels are classes."""
        if self.task != "regression":
            return None
        labels = self.split("train").labels.double()
        spread = labels.std(correction=0).item()
        return Target(mean=labels.mean().item(), std=spread or 1.0)

    def split(self, name: str) -> Split:
        """The split, or `OfframpError` if there is none of that name or it is empty."""
        if name not in self._makers:
            raise OfframpError(f"{self.name}: {suggest('split', name, self._makers)}")
        if name not in self._made:
            made = self._makers[name]()
            if not len(made):
                sizes = {other: len(make()) for other, make in self._makers.items()}
                listed = ", ".join(f"{other} {size}" for other, size in sizes.items())
                raise OfframpError(f"{self.name}: the {name} split is empty (images: {listed})")
            self._made[name] = made
        return self._made[name]

    def __repr__(self) -> str:
        what = f"{self.num_classes} classes" if self.task == "classification" else self.task
        return f"DataSource({self.name!r}, {what})"


class Request:
    """What `open_dataset` was asked for, as a data set's builder needs it."""

    def __init__(
        self,
        spec: str,
        *,
        calibration: float = 0.06,
        validation: float = 0.04,
        limit: int | Mapping[str, int] | None = None,
        root: Path | str | None = None,
    ) -> None:
        self.spec = spec
        self.name, _, self.argument = spec.partition(":")
        if min(calibration, validation) < 0 or calibration + validation >= 1:
            raise OfframpError(
                f"calibration = {calibration:g} and validation = {validation:g} are shares of the "
                "training images: each at least 0, together below 1"
            )
        self.calibration, self.validation = calibration, validation
        self.root = Path(root or os.environ.get("OFFRAMP_DATA") or "data")
        limits = limit if isinstance(limit, Mapping) else dict.fromkeys(SPLITS, limit)
        for split, count in limits.items():
            if split not in SPLITS:
                raise OfframpError(f"limit: {suggest('split', split, SPLITS)}")
            if count is not None and count < 1:
                raise OfframpError(f"limit = {count} for {split}: use at least 1")
        self.limits = limits

    def path(self) -> Path:
        """The path after the colon, as given or below the data root."""
        if not self.argument:
            raise OfframpError(f"{self.name} needs a path: {self.name}:PATH")
        given = Path(self.argument).expanduser()
        for path in (given, self.root / given):
            if path.exists():
                return path
        raise OfframpError(f"{self.spec}: {given} does not exist (nor does {self.root / given})")

    def plain(self) -> None:
        """Refuse a path after the name of a data set that takes none."""
        if self.argument:
            raise OfframpError(f"{self.spec}: {self.name} takes no path, write just {self.name}")

    def limited(self, split: Split) -> Split:
        return split.limited(self.limits.get(split.name))


def open_dataset(
    spec: str,
    *,
    calibration: float = 0.06,
    validation: float = 0.04,
    limit: int | Mapping[str, int] | None = None,
    root: Path | str | None = None,
    options: Mapping[str, Any] | None = None,
) -> DataSource:
    """Open a data set by name, ``imagefolder:PATH`` or ``parquet:PATH``.

    ``calibration`` and ``validation`` are shares of the training images; ``limit`` is the most
    samples per split (one number, or split → number); ``root`` is where named sets lie (default:
    the environment variable OFFRAMP_DATA, else ./data); ``options`` are the set's own. Raises
    `OfframpError` for unknown names and options, missing files, broken and empty sets.
    """
    request = Request(spec, calibration=calibration, validation=validation, limit=limit, root=root)
    build = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(
        DATASETS.get(request.name)
    )
    try:
        return build(request, **(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise OfframpError(f"{request.name}: option {key}: {first['msg']}") from None
