"""Numbers that add up: figures of whole photos, where samples are the crops they are cut into."""

import torch
from torch import Tensor

from offramp.calibration.records import Records
from offramp.errors import OfframpError


class Wholes:
    """What the samples of some records are parts of.

    Args:
        name: what a whole is called (``photo``).
        ids: (N,) the whole that each sample belongs to.
    """

    def __init__(self, name: str, ids: Tensor) -> None:
        self.name = name
        _, self.place = ids.unique(return_inverse=True)
        self.count = int(self.place.max()) + 1

    def sums(self, values: Tensor) -> Tensor:
        """Values of samples (N,) → their sums over each whole, float64."""
        total = torch.zeros(self.count, dtype=torch.float64)
        return total.index_add_(0, self.place, values.double())

    def figures(self, records: Records, prediction: Tensor) -> dict[str, float]:
        """The task's figures of the sums: ``photo_mae``, ``photo_rmse``."""
        if len(self.place) != len(records):
            raise OfframpError(f"{len(records)} records, but {len(self.place)} parts of wholes")
        found = records.task.figures(self.sums(prediction), self.sums(records.labels))
        return {f"{self.name}_{key}": value for key, value in found.items()}
