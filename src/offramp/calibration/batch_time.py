"""Time of an operating point at a batch size whose segments see ever smaller batches."""

from collections.abc import Mapping, Sequence

import numpy as np

from offramp.calibration.point import FrontPoint
from offramp.costs.table import CostTable


def batch_time(point: FrontPoint, tables: Mapping[int, CostTable], batch_size: int) -> float:
    """Milliseconds per image, survivors of a batch running on in batches of their own size.

    A segment takes a fixed time per call besides its time per sample, so the few who reach a deep
    exit cost more than their share of a full batch. Between measured batch sizes a call's time is
    a straight line.

    Args:
        tables: milliseconds per image at several batch sizes, on the engine the point is for.
        batch_size: images per batch.
    """
    share = np.asarray(point.exit_share)
    arriving = batch_size * (1 - np.concatenate([[0.0], np.cumsum(share)[:-1]]))
    last = len(share) - 1
    total = 0.0
    for k, n in enumerate(arriving):
        total += _call(n, tables, [table.body[k] for _, table in sorted(tables.items())])
        if k in point.active or k == last:
            total += _call(n, tables, [table.head[k] for _, table in sorted(tables.items())])
    return total / batch_size


def _call(n: float, tables: Mapping[int, CostTable], per_image: Sequence[float]) -> float:
    """Time of a call with ``n`` samples; with less than one, so often as one comes."""
    sizes = sorted(tables)
    calls = [size * ms for size, ms in zip(sizes, per_image, strict=True)]
    if n <= sizes[0]:
        return float(n / sizes[0] * calls[0])
    if n >= sizes[-1]:
        return float(n / sizes[-1] * calls[-1])
    return float(np.interp(n, sizes, calls))
