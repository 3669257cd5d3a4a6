"""Merit over cost of one run under one policy: chosen on calibration, told on held-out data."""

from typing import NamedTuple

from offramp.calibration import Records, calibrate
from offramp.calibration.front import measure
from offramp.calibration.replay import replay
from offramp.costs.table import CostTable
from offramp.policies import policy_from_config


class Spot(NamedTuple):
    """A setting: cost as a share of the reference model's, and merit (`Task.merit`): accuracy in
    percent, or minus the MAE, so that more is better whatever the task."""

    cost: float
    merit: float


class Curve(NamedTuple):
    """Settings worth having, cheapest first on the calibration split, and what they do elsewhere.

    A setting is picked by what it did in calibration and reported by what it does on the held-out
    samples, as in use.
    """

    calibrated: tuple[Spot, ...]
    held_out: tuple[Spot, ...]

    def within(self, budget: float) -> Spot | None:
        """The best setting that costs at most ``budget``; None: even the cheapest does."""
        fitting = [i for i, spot in enumerate(self.calibrated) if spot.cost <= budget]
        if not fitting:
            return None
        return self.held_out[max(fitting, key=lambda i: self.calibrated[i].merit)]

    def reaching(self, merit: float) -> Spot | None:
        """The cheapest setting that is as good as ``merit``; None: none is."""
        enough = [i for i, spot in enumerate(self.calibrated) if spot.merit >= merit]
        if not enough:
            return None
        return self.held_out[min(enough, key=lambda i: self.calibrated[i].cost)]

    def area(self, low: float, high: float = 1.0, steps: int = 200) -> float | None:
        """Mean merit over budgets spread evenly from ``low`` to ``high``."""
        spots = [self.within(low + (high - low) * step / steps) for step in range(steps + 1)]
        known = [spot.merit for spot in spots if spot is not None]
        return sum(known) / len(known) if len(known) == len(spots) else None


def trace_curve(
    policy: str, calibration: Records, held_out: Records, costs: CostTable, reference: float
) -> Curve:
    """The front of a policy on ``calibration``, replayed on ``held_out``.

    Args:
        costs: MACs between the model's exits.
        reference: MACs of the model that budgets are shares of.
    """
    front = calibrate(calibration, policy=policy, max_cost=1e9, costs=costs).front
    share, task = costs.full / reference, held_out.task
    told = []
    for point in front:
        decisions = replay(policy_from_config(point.policy), held_out, point.active)
        found = measure(decisions, held_out, costs, point.active)
        told.append(Spot(found.cost * share, task.scale * found.accuracy))
    chosen = (Spot(point.cost_share * share, task.merit(point.accuracy)) for point in front)
    return Curve(tuple(chosen), tuple(told))
