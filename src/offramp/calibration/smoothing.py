"""What an exit's answers are worth at a given score, as a smooth curve.

Thresholds searched on plain right-or-wrong outcomes learn the calibration samples by heart: with
eleven exits and 3,000 samples the true loss was 1.1 points above the searched one in a simulation.
Searched on smooth curves it was 0.1 above, at the same true front.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_BINS = 128
_DEGREE = 3


def expected_worth(
    scores: NDArray[np.float32], worth: NDArray[np.bool_] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Expected worth given the score, per exit: (N, K) to (N, K).

    Being right (bool) by logistic regression, other numbers by least squares, on a cubic in the
    normal score of the sample's rank, so that the scale of the score does not matter.
    """
    curve: Callable[..., Any] = _curve if worth.dtype == bool else _mean_curve
    columns = [curve(scores[:, k], worth[:, k]) for k in range(scores.shape[1])]
    return np.stack(columns, axis=1)


def _mean_curve(scores: NDArray[np.float32], worth: NDArray[np.float64]) -> NDArray[np.float64]:
    features = _features(_quantiles(scores))
    design = np.column_stack([np.ones(len(features)), features])
    weights, *_ = np.linalg.lstsq(design, worth.astype(np.float64), rcond=None)
    return np.asarray(design @ weights)


def _curve(scores: NDArray[np.float32], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    if correct.all() or not correct.any():
        return correct.astype(np.float64)
    from sklearn.linear_model import LogisticRegression

    quantile = _quantiles(scores)
    bins = min(_BINS, len(scores))  # fitting on counts per bin takes milliseconds at any N
    index = np.minimum((quantile * bins).astype(np.int64), bins - 1)
    size = np.bincount(index, minlength=bins)
    right = np.bincount(index, correct, minlength=bins)
    centres = _features((np.arange(bins) + 0.5) / bins)
    model = LogisticRegression(C=10.0, solver="newton-cholesky")
    outcome = np.repeat([1, 0], bins)
    model.fit(np.tile(centres, (2, 1)), outcome, np.concatenate([right, size - right]))
    logit = _features(quantile) @ model.coef_[0] + model.intercept_[0]
    return np.asarray(1 / (1 + np.exp(-logit)))


def _quantiles(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rank of every score in (0, 1); equal scores share the middle of their ranks."""
    order = np.argsort(scores)
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(scores))
    quantile = np.empty(len(scores))
    quantile[order] = np.repeat((starts + ends) / (2 * len(scores)), ends - starts)
    return quantile


def _features(quantile: NDArray[np.float64]) -> NDArray[np.float64]:
    normal = torch.special.ndtri(torch.from_numpy(quantile)).numpy()
    return np.stack([normal**power for power in range(1, _DEGREE + 1)], axis=1)
