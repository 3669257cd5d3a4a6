"""What a setting of policy and active exits does on records, and which are worth having."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from offramp.calibration.records import Records
from offramp.calibration.replay import Decisions
from offramp.costs.table import CostTable
from offramp.policies.base import Policy
from offramp.reducers.reducer import ReducerSpec


@dataclass(frozen=True)
class Measure:
    """What a setting does on a set of samples.

    Attributes:
        accuracy: mean worth of its answers: the share of right ones, minus the MAE in regression.
        differ: mean squared difference of worth from the full model's answers; of classes, the
            share of samples where one is right and the other wrong.
        cost: mean cost as a share of the unmodified model's.
        exit_share: (K,) share of the samples that leave at each exit.
    """

    accuracy: float
    differ: float
    cost: float
    exit_share: tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    """A policy, the early exits that are on, and what the two do."""

    policy: Policy
    active: tuple[int, ...]
    measure: Measure


class FrontPoint(BaseModel):
    """One setting on the front, measured on the calibration samples.

    Attributes:
        reducer: what leaves tokens out at this setting; None: what the run's model was made with.
        policy: config of the policy.
        active: early exits that are on.
        accuracy: percent; the MAE in regression.
        drop: percentage points below the full model; in regression how much its MAE is above.
        drop_error: standard error of ``drop`` (paired).
        cost: mean cost in the unit of the searched table.
        cost_share: cost over the unmodified model's.
        speedup_layers: blocks in the model over mean blocks run.
        speedup_macs: MACs of the unmodified model over mean MACs, heads counted.
        speedup_time: the same for measured time.
        exit_share: (K,) share of the samples that leave at each exit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reducer: ReducerSpec | None = None
    policy: dict[str, Any]
    active: tuple[int, ...]
    accuracy: float
    drop: float
    drop_error: float
    cost: float
    cost_share: float
    speedup_layers: float
    speedup_macs: float | None = None
    speedup_time: float | None = None
    exit_share: tuple[float, ...]

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        values = self.policy.get("thresholds")
        return None if values is None else tuple(values)


def measure(
    decisions: Decisions, records: Records, costs: CostTable, active: Sequence[int]
) -> Measure:
    """What decisions mean in accuracy and cost."""
    worth = records.worth_of(decisions.prediction).double()
    full = records.full_worth.double()
    share = decisions.exit_share
    return Measure(
        accuracy=worth.mean().item(),
        differ=(worth - full).square().mean().item(),
        cost=costs.mean_cost(share, active) / costs.full,
        exit_share=share,
    )


def pareto(settings: Iterable[Setting]) -> list[Setting]:
    """Settings that no other beats in both cost and accuracy, cheapest first."""
    front: list[Setting] = []
    for setting in sorted(settings, key=lambda s: (s.measure.cost, -s.measure.accuracy)):
        if not front or setting.measure.accuracy > front[-1].measure.accuracy:
            front.append(setting)
    return front


def locked_exits(standalone: Sequence[bool]) -> tuple[int, ...]:
    """Early exits that old records do not allow to switch off.

    An exit that is not standalone was recorded with all its predecessors running, so it and they
    stay on.
    """
    dependent = [k for k, alone in enumerate(standalone[:-1]) if not alone]
    return tuple(range(dependent[-1] + 1)) if dependent else ()


class StaticPoint(BaseModel):
    """Every sample leaves at one exit; no other head runs unless it has to.

    Attributes:
        accuracy: percent; the MAE in regression.
        cost: share of the unmodified model's cost.
        layers: layer speed-up, blocks in the model over blocks run.
        speedup: unmodified cost over cost.
    """

    exit: int
    name: str
    accuracy: float
    cost: float
    layers: float
    speedup: float


def static_points(records: Records, costs: CostTable) -> list[StaticPoint]:
    """What leaving at each exit would give for all samples; the last never leaves early."""
    locked = locked_exits(records.meta.standalone)
    blocks = records.meta.blocks_run
    points = []
    for k, (name, accuracy) in enumerate(
        zip(records.meta.exit_names, records.accuracy, strict=True)
    ):
        active = {*(j for j in locked if j < k), k} - {records.num_exits - 1}
        cost = costs.leave_cost(sorted(active))[k] / costs.full
        points.append(
            StaticPoint(
                exit=k,
                name=name,
                accuracy=records.task.value(accuracy),
                cost=cost,
                layers=records.meta.baseline_blocks / blocks[k],
                speedup=1 / cost,
            )
        )
    return points


def speedup_layers(records: Records, exit_share: Sequence[float]) -> float:
    """Blocks in the model over the mean number of blocks run (LGViT's speed-up)."""
    return records.meta.baseline_blocks / float(np.dot(exit_share, records.meta.blocks_run))
