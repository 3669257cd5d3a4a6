"""Two samples of answers compared: are exits and confidences drawn from the same distributions?"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from offramp.monitor.reference import Reference, Sight

FEWEST = 20  # readings at an exit, here and there, below which they are not compared
_TINY = 1e-300  # Fisher's method takes logarithms


def exits_p_value(reference: Reference, live: Sight) -> float:
    """P-value of equal exit histograms.

    At every exit those who came there either left or went on. That is compared with the reference
    by Fisher's exact test (hypergeometric, smaller tail doubled), and the exits' p-values are
    combined by Fisher's method: given the exits before, each holds on its own. Exact for any
    number of samples, and whoever was cut by a deadline counts, rightly, as one who had not left.
    """
    known = reference.sight
    left, came, left_known, came_known = (
        np.array(
            [
                (
                    np.count_nonzero((live.exits == k) & ~live.cut),
                    np.count_nonzero(live.exits >= k),
                    np.count_nonzero(known.exits == k),
                    np.count_nonzero(known.exits >= k),
                )
                for k in reference.leaves[:-1]
            ],
            dtype=np.int64,
        )
        .reshape(-1, 4)
        .T
    )
    seen = (came > 0) & (came_known > 0)
    if not seen.any():
        return 1.0
    left, came, left_known, came_known = (
        column[seen] for column in (left, came, left_known, came_known)
    )
    law = stats.hypergeom(came + came_known, left + left_known, came)
    tails = np.minimum(law.cdf(left), law.sf(left - 1))
    return combined(np.minimum(1.0, 2 * tails).tolist())


def readings_p_value(reference: Reference, live: Sight) -> float:
    """P-value of equal confidences among those who left at the same exit.

    Two-sample Kolmogorov-Smirnov tests, one per exit with enough samples on both sides, combined by
    Fisher's method. Whoever was cut is left out: the policy had not let them leave.
    """
    found = []
    for k in reference.leaves:
        known, mine = reference.sorted[k], live.readings[(live.exits == k) & ~live.cut]
        if min(len(known), len(mine)) >= FEWEST:
            found.append(float(stats.ks_2samp(known, mine, method="asymp").pvalue))
    return combined(found)


def combined(p_values: Sequence[float]) -> float:
    """Fisher's method; 1 for no p-value at all."""
    if not p_values:
        return 1.0
    return float(stats.combine_pvalues(np.maximum(p_values, _TINY), method="fisher").pvalue)
