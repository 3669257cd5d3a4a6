"""What a frozen backbone says about each image, kept on disk so that it is computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import OfframpError


class FeatureCache:
    """Tensors by sample id, in memory-mapped float16 files of bounded size.

    The cache belongs to one run of one process and starts empty: it is never read by another run
    (`SharedFeatureCache` is).

    Args:
        folder: where the files lie; they are removed by ``close``.
        gigabytes: size limit of all files together.
    """

    lasting: ClassVar[bool] = False
    """Whether other runs may find what is kept."""

    def __init__(self, folder: Path, gigabytes: float) -> None:
        if gigabytes <= 0:
            raise OfframpError(f"cache = {gigabytes} GB, but the limit must be above 0")
        self.folder, self.limit = folder, gigabytes * 1e9
        self.rows: dict[int, int] = {}
        self.stores: list[NDArray[np.float16]] = []
        self.capacity = 0

    def add(self, ids: Tensor, tensors: Sequence[Tensor]) -> bool:
        """Keep tensors (B, …) of the samples ``ids`` (B,); False where not all of them fit."""
        if not self.stores:
            self._allocate(tensors)
        fitting = ids.tolist()[: self.capacity - len(self.rows)]
        first, last = len(self.rows), len(self.rows) + len(fitting)
        for store, tensor in zip(self.stores, tensors, strict=True):
            half = tensor[: len(fitting)].detach().to("cpu", torch.float16)
            if not half.isfinite().all():
                raise OfframpError(
                    f"features reach {tensor.abs().max().item():.3g}, more than the cache's half "
                    "precision holds: set cache_gb: null"
                )
            store[first:last] = half.numpy()
        self.rows.update(zip(fitting, range(first, last), strict=True))
        return len(fitting) == len(ids)

    def find(self, key: str, ids: Tensor) -> bool:
        """Whether features of the samples ``ids`` (N,) are there already under ``key``."""
        return False

    def keep(self, key: str) -> None:
        """The features of every sample are in; other runs may find them under ``key``."""

    def holds(self, ids: Tensor) -> Tensor:
        """Which of the samples ``ids`` (B,) are kept: bool (B,)."""
        return torch.tensor([key in self.rows for key in ids.tolist()], dtype=torch.bool)

    def fetch(self, ids: Tensor) -> list[Tensor]:
        """Tensors (B, …) in float32 of samples that are kept."""
        rows = [self.rows[key] for key in ids.tolist()]
        return [torch.from_numpy(np.asarray(store[rows], np.float32)) for store in self.stores]

    def _allocate(self, tensors: Sequence[Tensor]) -> None:
        sample = sum(2 * tensor[0].numel() for tensor in tensors)
        self.capacity = int(self.limit // sample)
        self.folder.mkdir(parents=True, exist_ok=True)
        for i, tensor in enumerate(tensors):  # sparse files: only rows that are written take space
            shape = (max(self.capacity, 1), *tensor.shape[1:])
            path = self.folder / f"features-{i}.f16"
            empty = 0 in shape  # a backbone without class tokens; there are no empty memory maps
            self.stores.append(
                np.empty(shape, np.float16)
                if empty
                else np.memmap(path, dtype=np.float16, mode="w+", shape=shape)
            )

    def clear(self) -> None:
        """Forget everything, remove the files."""
        paths = [Path(str(s.filename)) for s in self.stores if isinstance(s, np.memmap)]
        self.stores.clear()
        self.rows.clear()
        for path in paths:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
