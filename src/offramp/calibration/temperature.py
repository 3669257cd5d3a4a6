"""Temperature scaling, one temperature per exit.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599. In the inverse
temperature β the negative log-likelihood is convex, so Newton's method with a bracket finds the
minimum in a few passes over the logits.
"""

import math

import torch
from torch import Tensor

from offramp.calibration.records import Records
from offramp.errors import OfframpError

BOUNDS = (0.05, 20.0)  # an exit that is always right on the split has its optimum at zero
_ITERATIONS = 30
_TOLERANCE = 1e-6


def fit_temperatures(records: Records) -> tuple[float, ...]:
    """Temperature of every exit that minimises its negative log-likelihood: (K,)."""
    if records.meta.task != "classification":
        raise OfframpError(f"temperatures scale a softmax, which {records.meta.task} has none of")
    logits, labels = records.logits, records.labels
    return tuple(fit_temperature(logits[:, k], labels) for k in range(records.num_exits))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Temperature T in `BOUNDS` that minimises the NLL of softmax(logits / T).

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    beta = 1.0
    for _ in range(_ITERATIONS):
        slope, curvature = _derivatives(logits, labels, beta)
        low, high = (low, beta) if slope > 0 else (beta, high)
        newton = beta - slope / curvature if curvature > 0 else math.inf
        proposed = newton if low < newton < high else math.sqrt(low * high)
        if abs(proposed - beta) <= _TOLERANCE * beta:
            break
        beta = proposed
    fitted = 1 / beta
    return fitted if nll(logits, labels, fitted) < nll(logits, labels, 1.0) else 1.0


def nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean negative log-likelihood in nats of softmax(logits / temperature)."""
    return torch.nn.functional.cross_entropy(logits / temperature, labels).item()


def _derivatives(logits: Tensor, labels: Tensor, beta: float) -> tuple[float, float]:
    """First and second derivative of the mean NLL in β: E[z] − z_y and Var[z]."""
    probabilities = torch.softmax(logits * beta, dim=-1)
    mean = (probabilities * logits).sum(dim=-1)
    variance = (probabilities * (logits - mean[:, None]).square()).sum(dim=-1)
    true = logits.gather(1, labels[:, None])[:, 0]
    return (mean - true).double().mean().item(), variance.double().mean().item()
