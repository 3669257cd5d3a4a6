"""Anytime: accuracy when the budget may end at any moment, from records and a table of costs.

The setting of Multi-Exit ViT (Bakhtiarnia, Zhang, Iosifidis, BMVC 2021): no confidence is looked
at, the answer is that of the newest exit which was finished. With c_k the cost up to exit k, a
budget b gives acc(b) = accuracy of the largest k with c_k ≤ b; below c_1 nothing is known about
the image, and the best answer is the commonest class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from offramp.calibration.front import locked_exits
from offramp.calibration.records import Records
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import write_json

if TYPE_CHECKING:
    from offramp.runs import RunFolder

ANYTIME = "anytime.json"
GRID = 121  # mean budgets a curve is drawn at
BEYOND = 1.2  # the largest of them, over the cost of the last exit
Counting = Literal["multi", "single"]


@dataclass(frozen=True)
class Budgets:
    """How budgets are spread around their mean.

    Args:
        name: what it is called.
        says: the same as words.
        pieces: (weight, low, high), in multiples of the mean: a mixture of uniform pieces, of
            which those with low = high are single values.
    """

    name: str
    says: str
    pieces: tuple[tuple[float, float, float], ...]

    def at_least(self, cost: float, mean: float) -> float:
        """Share of the budgets that hold ``cost``."""
        return sum(
            weight * _holds(cost, low * mean, high * mean) for weight, low, high in self.pieces
        )


BUDGETS = (
    Budgets("fixed", "every request has the same budget", ((1, 1, 1),)),
    Budgets(
        "uniform",
        "budgets spread evenly from half to one and a half times the mean",
        ((1, 0.5, 1.5),),
    ),
    Budgets(
        "bursty",
        "four in five requests have 1.1 to 1.3 times the mean, one in five, in bursts, 0.1 to 0.3",
        ((0.8, 1.1, 1.3), (0.2, 0.1, 0.3)),
    ),
)
"""Mean budgets are compared at equal means; requests do not wait for each other."""


class Curve(BaseModel):
    """The exits as answers to budgets, costs counted in one way.

    Attributes:
        costs: (K,) up to and including each exit.
        dominated_by: (K,) a better exit that costs no more, where there is one: the exit is
            pointless as an anytime answer.
        average: accuracy with budgets spread evenly from the first exit's cost to the last's.
        accuracy: by name of the spread, accuracy at each mean budget.
    """

    model_config = ConfigDict(extra="forbid")

    costs: list[float]
    dominated_by: list[int | None]
    average: float
    accuracy: dict[str, list[float]]


class Anytime(BaseModel):
    """Accuracy against budget; in regression every accuracy is an MAE.

    Attributes:
        unit: of costs and budgets.
        full: cost of the unmodified backbone.
        prior: accuracy without looking: always the commonest class, or the middle value.
        exits: accuracy of every exit, in percent.
        budgets: mean budgets of the curves.
        spreads: the words for each spread.
        curves: ``multi`` counts every head on the way, which is what running them in turn costs;
            ``single`` the exit's own head alone, a deployment of one exit.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    dataset: str
    split: str
    samples: int
    engine: str
    precision: str
    task: str
    unit: str
    full: float
    meta: dict[str, Any]
    exit_names: list[str]
    prior: float
    exits: list[float]
    budgets: list[float]
    spreads: dict[str, str]
    curves: dict[Counting, Curve]


def anytime(records: Records, costs: CostTable) -> Anytime:
    """Accuracy against budget of the exits in ``records``.

    Args:
        records: of held-out samples.
        costs: MACs or milliseconds of every piece.

    Raises:
        OfframpError: when the table is of another number of exits.
    """
    if costs.num_exits != records.num_exits:
        raise OfframpError(
            f"the cost table has {costs.num_exits} exits, the records {records.num_exits}"
        )
    task = records.task
    exits = [task.value(worth) for worth in records.accuracy]
    counted: dict[Counting, list[float]] = {
        "multi": list(costs.leave_cost()),
        "single": single_costs(costs, records.meta.standalone),
    }
    prior = _prior(records)
    grid = np.linspace(0, BEYOND * counted["multi"][-1], GRID).tolist()
    return Anytime(
        **{key: getattr(records.meta, key) for key in ("fingerprint", "dataset", "split")},
        samples=len(records),
        engine=records.meta.engine,
        precision=records.meta.precision,
        task=task.name,
        unit=costs.unit,
        full=costs.full,
        meta=costs.meta,
        exit_names=records.meta.exit_names,
        prior=prior,
        exits=exits,
        budgets=grid,
        spreads={budgets.name: budgets.says for budgets in BUDGETS},
        curves={
            name: _curve(exits, paid, prior, grid, fewer=task.fewer)
            for name, paid in counted.items()
        },
    )


def anytime_run(run: "RunFolder", records: Records, costs: CostTable) -> Anytime:
    """`anytime` of a run's records, kept as ``anytime.json``."""
    found = anytime(records, costs)
    write_json(run.path / ANYTIME, found.model_dump(mode="json"))
    return found


def single_costs(costs: CostTable, standalone: Sequence[bool]) -> list[float]:
    """Cost of each exit alone: the backbone up to it and its own head.

    An exit that is not standalone, and every one after it, needs the heads before it, too.
    """
    locked = locked_exits(standalone)
    return [costs.leave_cost([j for j in locked if j < k] + [k])[k] for k in range(costs.num_exits)]


def accuracy_at(
    accuracy: Sequence[float], costs: Sequence[float], prior: float, budgets: Budgets, mean: float
) -> float:
    """Expected accuracy of the last exit whose cost a random budget holds.

    Args:
        accuracy, costs: (K,) of every exit, in order.
        prior: accuracy where not even the first exit fits.
        mean: mean budget.
    """
    # exit k or a later one fits if the cheapest of them does
    cheapest = np.minimum.accumulate(np.asarray(costs)[::-1])[::-1]
    reached = [budgets.at_least(float(cost), mean) for cost in cheapest]
    steps = pairwise([*reached, 0.0])
    answered = sum(
        value * (here - later) for value, (here, later) in zip(accuracy, steps, strict=True)
    )
    return prior * (1 - reached[0]) + answered


def dominated_by(worth: Sequence[float], costs: Sequence[float]) -> list[int | None]:
    """For every exit the best one that costs no more and is worth more, or None.

    Equally good and cheaper is better, too.
    """
    found: list[int | None] = []
    for value, cost in zip(worth, costs, strict=True):
        better = [
            j
            for j, (other, price) in enumerate(zip(worth, costs, strict=True))
            if (price <= cost and other > value) or (price < cost and other == value)
        ]
        found.append(max(better, key=lambda j: (worth[j], -costs[j])) if better else None)
    return found


def _prior(records: Records) -> float:
    """Accuracy of the one answer that does best for everybody."""
    labels, task = records.labels, records.task
    guess = labels.median() if labels.is_floating_point() else labels.mode().values
    return task.value(task.worth(guess.expand_as(labels), labels).double().mean().item())


def _curve(
    accuracy: list[float], costs: list[float], prior: float, grid: list[float], *, fewer: bool
) -> Curve:
    evenly = Budgets("", "", ((1, min(costs), costs[-1]),))
    return Curve(
        costs=costs,
        dominated_by=dominated_by([-value if fewer else value for value in accuracy], costs),
        average=accuracy_at(accuracy, costs, prior, evenly, 1.0),
        accuracy={
            budgets.name: [accuracy_at(accuracy, costs, prior, budgets, mean) for mean in grid]
            for budgets in BUDGETS
        },
    )


def _holds(cost: float, low: float, high: float) -> float:
    """Share of a uniform piece that is at least ``cost``."""
    if high <= low:
        return float(high >= cost)
    return min(max((high - cost) / (high - low), 0.0), 1.0)
