"""Reliability: does an exit's confidence say how often it is right?

Expected calibration error over equal-width bins of confidence, Naeini et al., AAAI 2015, as
computed by torchmetrics; the bins are those of its diagram.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from offramp import vision_cure
from offramp.calibration.records import Records


class Reliability(BaseModel):
    """One exit's reliability diagram.

    Attributes:
        ece: expected calibration error in [0, 1].
        edges: bin borders, one more than bins.
        count: samples per bin.
        confidence: mean confidence per bin, ``None`` where it is empty.
        accuracy: share of right answers per bin, ``None`` where it is empty.
    """

    exit_name: str
    ece: float
    edges: list[float]
    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


def reliability(
    records: Records, *, temperatures: Sequence[float] | None = None, bins: int = 15
) -> list[Reliability]:
    """Reliability of every exit over all samples, optionally after temperature scaling."""
    scales = [1.0] * records.num_exits if temperatures is None else temperatures
    return [_exit(records, k, scales[k], bins) for k in range(records.num_exits)]


def _exit(records: Records, k: int, temperature: float, bins: int) -> Reliability:
    vision_cure.ensure()  # torchmetrics looks for torchvision
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities = torch.softmax(records.logits[:, k] / temperature, dim=-1)
    error = multiclass_calibration_error(
        probabilities, records.labels, num_classes=probabilities.shape[-1], n_bins=bins
    )
    confidence, right = probabilities.amax(dim=-1), records.correct[:, k]
    edges = torch.linspace(0, 1, bins + 1)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins)
    return Reliability(
        exit_name=records.meta.exit_names[k],
        ece=float(error),
        edges=edges.tolist(),
        count=count.tolist(),
        confidence=_means(confidence, index, count),
        accuracy=_means(right, index, count),
    )


def _means(values: Tensor, index: Tensor, count: Tensor) -> list[float | None]:
    sums = torch.bincount(index, weights=values.double(), minlength=len(count))
    return [s / n if n else None for s, n in zip(sums.tolist(), count.tolist(), strict=True)]
