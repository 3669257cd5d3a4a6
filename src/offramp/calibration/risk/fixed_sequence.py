"""Fixed-sequence testing: many settings, one error probability, no correction."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def last_rejected(p_values: Sequence[float] | NDArray[np.float64], delta: float) -> int | None:
    """Index of the last of the leading p-values that are at most ``delta``; ``None`` without any.

    Hypotheses are tested in an order fixed beforehand, each at the full level, until the first that
    is not rejected. A true one is rejected with probability at most ``delta``, because the first
    true one must be. The setting at which testing stopped is *not* proved: the answer is the one
    before it.
    """
    kept = np.asarray(p_values) > delta
    leading = int(kept.argmax()) if kept.any() else len(kept)
    return leading - 1 if leading else None
