"""Time of an operating point at a batch size whose segments see ever smaller batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from offramp.calibration.front import FrontPoint
from offramp.costs.table import CostTable

_ROUNDS = 4
P = TypeVar("P", bound=FrontPoint)


def survivor_sizes(batch_size: int) -> list[int]:
    """Batch sizes to measure at: between them stands whatever is left of a batch."""
    return sorted({1, -(-batch_size // 4), batch_size})


def batch_time(point: FrontPoint, tables: Mapping[int, CostTable], batch_size: int) -> float:
    """Milliseconds per image, survivors of a batch running on in batches of their own size.

    A segment takes a fixed time per call besides its time per sample, so the few who reach a deep
    exit cost more than their share of a full batch. Between measured batch sizes a call's time is
    a straight line.

    Args:
        tables: milliseconds per image at several batch sizes, on the engine the point is for.
        batch_size: images per batch.
    """
    table = survivors_table(point, tables, batch_size)
    return table.mean_cost(point.exit_share, point.active)


def quickest(
    found: Sequence[P], tables: Mapping[int, CostTable], search: Callable[[CostTable], P]
) -> P:
    """The point that takes least at the largest batch size of ``tables``.

    From the best of ``found`` the search goes on, each time on what the pieces take in the batches
    that reach them there, as long as that helps.
    """
    batch = max(tables)

    def taken(point: P) -> float:
        return batch_time(point, tables, batch)

    best = min(found, key=taken)
    for _ in range(_ROUNDS):
        next_one = search(survivors_table(best, tables, batch))
        if taken(next_one) >= taken(best):
            break
        best = next_one
    return best


def survivors_table(
    point: FrontPoint, tables: Mapping[int, CostTable], batch_size: int
) -> CostTable:
    """Milliseconds per image of every piece, in batches of those who reach it at ``point``.

    A search on this table sees that a head for a few stragglers is dear, and switches it off.
    """
    share = np.asarray(point.exit_share)
    reach = 1 - np.concatenate([[0.0], np.cumsum(share)[:-1]])
    arriving = [max(float(n), 1e-6) for n in batch_size * reach]
    ordered = [table for _, table in sorted(tables.items())]

    def each(pieces: str) -> tuple[float, ...]:
        columns = zip(*(getattr(table, pieces) for table in ordered), strict=True)
        return tuple(
            _call(n, tables, column) / n for n, column in zip(arriving, columns, strict=True)
        )

    largest = tables[max(tables)]
    return CostTable(
        unit=largest.unit,
        body=each("body"),
        head=each("head"),
        full=_call(batch_size, tables, [table.full for table in ordered]) / batch_size,
        meta=largest.meta | {"batch_size": batch_size, "survivors": arriving},
    )


def _call(n: float, tables: Mapping[int, CostTable], per_image: Sequence[float]) -> float:
    """Time of a call with ``n`` samples; with less than one, so often as one comes."""
    sizes = sorted(tables)
    calls = [size * ms for size, ms in zip(sizes, per_image, strict=True)]
    if n <= sizes[0]:
        return float(n / sizes[0] * calls[0])
    if n >= sizes[-1]:
        return float(n / sizes[-1] * calls[-1])
    return float(np.interp(n, sizes, calls))
