"""What a frozen backbone says about each image, kept on disk so that it is computed once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offramp.errors import OfframpError


class FeatureCache:
    """States of a frozen backbone by sample id, in memory-mapped float16 files of bounded size.

    Samples beyond the limit are computed again each time they are met. The cache belongs to one
    run of one process and starts empty: it is never read by another run.

    Args:
        folder: where the files lie; they are removed by ``close``.
        gigabytes: size limit of all files together.
    """

    def __init__(self, folder: Path, gigabytes: float) -> None:
        if gigabytes <= 0:
            raise OfframpError(f"cache = {gigabytes} GB, but the limit must be above 0")
        self.folder, self.limit = folder, gigabytes * 1e9
        self.rows: dict[int, int] = {}
        self.stores: list[np.memmap] = []
        self.capacity = 0

    def fetch(self, ids: Tensor, compute: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Tensors (B, …) for the samples ``ids`` (B,), from disk where all of them are there."""
        keys = ids.tolist()
        rows = [self.rows[key] for key in keys if key in self.rows]
        if len(rows) == len(keys):
            return [torch.from_numpy(np.asarray(store[rows], np.float32)) for store in self.stores]
        tensors = list(compute())
        if not self.stores:
            self._allocate(tensors)
        for i, key in enumerate(keys):
            if key not in self.rows and len(self.rows) < self.capacity:
                row = self.rows[key] = len(self.rows)
                for store, tensor in zip(self.stores, tensors, strict=True):
                    store[row] = tensor[i].detach().to("cpu", torch.float16).numpy()
        return [tensor.detach() for tensor in tensors]

    def _allocate(self, tensors: Sequence[Tensor]) -> None:
        sample = sum(2 * tensor[0].numel() for tensor in tensors)
        self.capacity = int(self.limit // sample)
        self.folder.mkdir(parents=True, exist_ok=True)
        for i, tensor in enumerate(tensors):  # sparse files: only rows that are written take space
            shape = (max(self.capacity, 1), *tensor.shape[1:])
            path = self.folder / f"features-{i}.f16"
            self.stores.append(np.memmap(path, dtype=np.float16, mode="w+", shape=shape))

    def close(self) -> None:
        """Forget everything and remove the files."""
        paths = [Path(str(store.filename)) for store in self.stores]
        self.stores.clear()
        self.rows.clear()
        for path in paths:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
