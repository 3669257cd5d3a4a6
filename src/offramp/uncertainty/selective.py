"""Selective risk: how wrong the answers are that one keeps, the surest first.

Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

_POINTS = 101


class Selective(BaseModel):
    """Risk against coverage.

    Attributes:
        coverage: shares of the samples that are kept, ascending.
        risk: share of wrong answers among them.
        aurc: mean risk over all coverages 1/N … 1.
        excess: what of that a perfect order would not have.
    """

    model_config = ConfigDict(extra="forbid")

    coverage: list[float]
    risk: list[float]
    aurc: float
    excess: float


def selective(confidence: Tensor, right: Tensor) -> Selective:
    """The curve of answers kept by confidence (N,); those equally sure count as their mean."""
    _, place, size = (-confidence).unique(return_inverse=True, return_counts=True)
    errors = torch.zeros(len(size), dtype=torch.float64).index_add_(0, place, (~right).double())
    spread = (errors / size).repeat_interleave(size)
    risk = _risk(spread)
    best = _risk((~right).double().sort().values)
    count = len(right)
    shown = torch.linspace(0, count - 1, min(_POINTS, count)).round().long()
    return Selective(
        coverage=((shown + 1).double() / count).tolist(),
        risk=risk[shown].tolist(),
        aurc=risk.mean().item(),
        excess=(risk - best).mean().item(),
    )


def _risk(errors: Tensor) -> Tensor:
    """Mean of the first 1 … N errors."""
    return errors.cumsum(dim=0) / torch.arange(1, len(errors) + 1)
