"""Features that outlive their run, for every other run on the same backbone and images."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from offramp.files import read_json, write_json
from offramp.training.feature_cache import FeatureCache

INDEX = "features.json"


class SharedFeatureCache(FeatureCache):
    """A feature cache whose files stay: FOLDER/KEY holds them, complete or not at all.

    The key tells all that decides the features (`FrozenFeatures.key`), so a file that is found is
    right. They are written beside their place and renamed when the last one is there.

    Args:
        folder: where caches of any number of backbones lie.
        gigabytes: size limit of one of them; what does not fit is not kept for other runs.
    """

    lasting = True

    def __init__(self, folder: Path, gigabytes: float) -> None:
        super().__init__(folder, gigabytes)
        self.shared = folder

    def find(self, key: str, ids: Tensor) -> bool:
        place = self.shared / key
        if not (place / INDEX).is_file():
            self.shared.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=self.shared))
            return False
        index = read_json(place / INDEX)
        known = np.load(place / "ids.npy").tolist()
        self.rows = dict(zip(known, range(len(known)), strict=True))
        self.capacity = len(known)
        self.stores = [
            np.empty(shape, np.float16)
            if 0 in shape
            else np.memmap(place / f"features-{i}.f16", np.float16, "r", shape=tuple(shape))
            for i, shape in enumerate(index["shapes"])
        ]
        return bool(self.holds(ids).all())

    def keep(self, key: str) -> None:
        for store in self.stores:
            if isinstance(store, np.memmap):
                store.flush()
        np.save(self.folder / "ids.npy", np.array(list(self.rows), np.int64))
        write_json(self.folder / INDEX, {"shapes": [list(store.shape) for store in self.stores]})
        place = self.shared / key
        if not place.exists():  # another run may have been faster
            os.replace(self.folder, place)

    def clear(self) -> None:
        """Forget everything; what is not kept is removed."""
        self.stores.clear()
        self.rows.clear()
        if self.folder != self.shared:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = self.shared
