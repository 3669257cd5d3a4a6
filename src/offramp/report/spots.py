"""Spots: one way to run the model each, with what it is worth and its three speed-ups."""

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.calibration import Records, oracle_front, static_points
from offramp.calibration.front import speedup_layers
from offramp.costs.table import CostTable


@dataclass(frozen=True)
class Spot:
    """One way to run the model: accuracy in percent, or the MAE of a regression, and its three
    speed-ups, never mixed."""

    name: str
    accuracy: float
    layers: float
    macs: float | None
    time: float | None = None


def static_spots(records: Records, macs: CostTable, time: CostTable | None) -> list[Spot]:
    """Every early exit, if all samples left there."""
    times = [point.speedup for point in static_points(records, time)] if time else []
    return [
        Spot(s.name, s.accuracy, s.layers, s.speedup, times[k] if times else None)
        for k, s in enumerate(static_points(records, macs)[:-1])
    ]


def oracle_spots(records: Records, macs: CostTable, time: CostTable | None) -> list[Spot]:
    """Corners of the upper bound, fastest first.

    Who knows which exit is right goes there at once, so that no head but its own is run: no policy
    that answers as the exit it leaves at does better, whatever exits are on. Empty for numbers,
    which are not right or wrong, and for a model without early exits.
    """
    if records.task.targets.is_floating_point or records.num_exits == 1:
        return []
    return [
        Spot(
            name="oracle",
            accuracy=records.task.value(corner.accuracy),
            layers=speedup_layers(records, corner.exit_share),
            macs=_direct(corner.exit_share, records, macs),
            time=_direct(corner.exit_share, records, time) if time else None,
        )
        for corner in oracle_front(records, macs)
    ]


def _direct(share: Sequence[float], records: Records, costs: CostTable) -> float:
    """Speed-up where every sample is sent to its exit, past all heads that can be left out."""
    points = static_points(records, costs)
    return 1 / sum(part * point.cost for part, point in zip(share, points, strict=True))
