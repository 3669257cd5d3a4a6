"""Bounds on a mean from samples of it: pure functions on numbers.

All hold for any distribution of independent, bounded losses; nothing is asymptotic.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

Floats = NDArray[np.float64]
_WHOLE = 1e-9  # 500 · 0.03 is a little more than 15, but means fifteen errors
_HALVINGS = 60


def hoeffding_bentkus(
    means: ArrayLike, count: int, level: float, *, bound: float = 1.0, binary: bool = False
) -> Floats:
    """p-values of "the risk is above ``level``", from mean losses (m,).

    Hoeffding's exponential and Bentkus' binomial tail, whichever is smaller (Bates et al.,
    "Distribution-Free, Risk-Controlling Prediction Sets", JACM 2021, and Learn-then-Test,
    arXiv 2110.01052).

    Args:
        means: mean losses of ``count`` samples, each in 0 … ``bound``; negative means count as 0.
        level: the risk ε that is tested, in 0 … ``bound``.
        binary: losses are only 0 or ``bound``: then the binomial tail itself is exact.
    """
    mean = np.clip(np.asarray(means, dtype=np.float64) / bound, 0.0, 1.0)
    level = level / bound
    tail = binom.cdf(np.ceil(count * mean - _WHOLE), count, level)
    if binary:
        return np.asarray(tail)
    hoeffding = np.exp(-count * _divergence(np.minimum(mean, level), level))
    return np.minimum(np.minimum(hoeffding, math.e * tail), 1.0)


def _divergence(a: Floats, b: float) -> Floats:
    """h(a, b) = a ln(a/b) + (1−a) ln((1−a)/(1−b)), of Bernoulli a from Bernoulli b; a ≤ b < 1."""
    first = np.where(a > 0, a * np.log(np.where(a > 0, a, 1.0) / b), 0.0)
    return np.asarray(first + (1 - a) * np.log((1 - a) / (1 - b)))


def betting(losses: Floats, level: float, delta: float, *, bound: float = 1.0) -> Floats:
    """p-values of "the risk is above ``level``" by betting against it: (n, m) to (m,).

    A gambler who bets on smaller losses than ``level`` multiplies his capital by 1 − ν(x − level)
    per sample x; if the risk is above it, he reaches 1/p with probability at most p (Ville). The
    stakes ν are those of Waudby-Smith and Ramdas (JRSS B 2024), set for losses as shares of
    ``bound``, so that their unit does not matter. Losses may be negative, and are read in the given
    order, which must not depend on them.

    Args:
        losses: (n, m) of n samples at m settings, each at most ``bound``.
        delta: the probability that the stakes are tuned to.
    """
    shares, level = losses / bound, level / bound
    stakes = _stakes(shares, delta)
    capital = np.cumsum(np.log1p(-stakes * (shares - level)), axis=0)
    return np.minimum(np.exp(-capital.max(axis=0)), 1.0)


def betting_bound(losses: Floats, delta: float, *, bound: float = 1.0) -> float:
    """Upper bound U of the mean of losses (n,): the mean is above it with probability ≤ δ (WSR).

    The smallest level that `betting` rejects at δ, but not above ``bound``.
    """
    column = losses[:, None] / bound
    stakes = _stakes(column, delta)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        capital = np.cumsum(np.log1p(-stakes * (column - middle)), axis=0).max()
        low, high = (low, middle) if capital > math.log(1 / delta) else (middle, high)
    return bound * high


def _stakes(losses: Floats, delta: float) -> Floats:
    """ν_i = min(1, √(2 ln(1/δ) / (n σ²_{i−1}))), of what was seen before sample i."""
    count = len(losses)
    seen = np.arange(2, count + 2)[:, None]
    mean = (0.5 + np.cumsum(losses, axis=0)) / seen
    variance = (0.25 + np.cumsum(np.square(losses - mean), axis=0)) / seen
    before = np.concatenate([np.full((1, losses.shape[1]), 0.25), variance[:-1]])
    stakes = np.sqrt(2 * math.log(1 / delta) / (count * before))
    # Just below 1: an outright loss would leave ln 0.
    return np.asarray(np.minimum(stakes, 1 - 1e-12))


def conformal_level(count: int, level: float, *, bound: float = 1.0) -> float:
    """Largest mean loss of ``count`` samples that conformal risk control admits for ``level``.

    Angelopoulos et al., "Conformal Risk Control", ICLR 2024: ((n+1) ε − bound) / n.
    """
    return ((count + 1) * level - bound) / count


def samples_needed(level: float, delta: float, *, bound: float = 1.0) -> int:
    """Samples without any loss from which a risk of ``level`` can be proved at δ."""
    return math.ceil(math.log(delta) / math.log1p(-level / bound) - _WHOLE)
