"""Cutting calibration records: what is fitted, chosen and proved never sees the same sample."""

from collections.abc import Mapping

import numpy as np
import torch

from offramp.calibration.records import Records
from offramp.data.randomness import shuffled
from offramp.errors import OfframpError

FIT = 0.15  # of the samples, where temperatures or a family's own numbers are fitted
THRESHOLDS = 0.35  # of the others, where a path of thresholds is searched before it is proved
_STREAM = "calibration parts"


def cut(records: Records, shares: Mapping[str, float]) -> dict[str, Records]:
    """Disjoint parts by name, in the order of a hash of the samples' ids.

    A sample's place in that order depends on its id alone; so does a part on the set of ids.

    Args:
        shares: size of each part; they are divided by their sum, and every part gets a sample.
    """
    if len(shares) == 1:
        return dict.fromkeys(shares, records)
    if len(records) < len(shares):
        raise OfframpError(
            f"{len(records)} samples cannot be cut into {len(shares)} parts "
            f"({', '.join(shares)}): collect more"
        )
    order = hash_order(records)
    edges = np.cumsum([0.0, *shares.values()]) / sum(shares.values())
    places = np.round(edges * len(order)).astype(int)
    for part in range(1, len(shares)):  # nobody goes empty
        places[part] = np.clip(places[part], places[part - 1] + 1, len(order) - len(shares) + part)
    parts = zip(shares, places[:-1], places[1:], strict=True)
    return {name: records.part(order[low:high].sort().values) for name, low, high in parts}


def hash_order(records: Records) -> torch.Tensor:
    """Positions of the samples in an order that depends on their ids alone: (N,)."""
    return torch.from_numpy(shuffled(records.ids.numpy(), stream=_STREAM))
