"""Which models in which order, and how sure each must be: every pair and triple of a pool.

A cascade's accuracy and cost at every threshold are prefix sums over samples sorted by confidence,
so pairs are searched over all thresholds at once and exactly. Triples take every threshold of the
second model for each of up to ``GRID`` thresholds of the first, evenly spread over its samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.search import midway
from offramp.calibration.targets import drop_error
from offramp.cascades.front import Block, Front, Ints
from offramp.cascades.pool import Bools, Pool, Scores
from offramp.errors import OfframpError

GRID = 256
_ROWS = 16  # thresholds of the first model that are in hand at once
_SLACK = 1e-12  # a loss of exactly 0.5 points keeps a promise of 0.5


@dataclass(frozen=True)
class Plan:
    """A cascade of models of a pool, or one of them alone, and what it does there.

    Attributes:
        members: which models, in the order they are asked.
        thresholds: how sure each but the last must be for its answer to count.
        average: whether answers are means of the logits so far.
        accuracy: share of right answers.
        cost: mean cost of a sample, in the pool's unit.
        share: of the samples, who leaves at each member.
        drop: accuracy lost against the best single model; ``error`` its standard error (paired).
    """

    members: tuple[int, ...]
    thresholds: tuple[float, ...]
    average: bool
    accuracy: float
    cost: float
    share: tuple[float, ...]
    drop: float
    error: float


def search(pool: Pool, *, longest: int = 3, average: bool = False, grid: int = GRID) -> list[Plan]:
    """Plans that no other beats in both cost and accuracy, cheapest first; single models too.

    Members of a cascade are asked from cheap to dear.

    Args:
        pool: models with their answers and costs.
        longest: most models in a cascade, 2 or 3.
        average: also try answering with the mean of the logits so far.
        grid: thresholds tried for the first of three.
    """
    if longest not in (2, 3):
        raise OfframpError(f"cascades of up to {longest} models, but 2 and 3 are searched")
    front = Front()
    for m, right in enumerate(pool.correct.sum(axis=1)):
        front.add(Block((m,), False, pool.costs[m : m + 1], right[None], np.zeros((1, 0), int)))
    for length in range(2, longest + 1):
        for members in combinations(range(len(pool.names)), length):
            for averaged in (False, True) if average else (False,):
                tried = _pairs if length == 2 else _triples
                for block in tried(pool, members, average=averaged, grid=grid):
                    front.add(block)
    stages = cache(lambda members, averaged: _stages(pool, members, average=averaged))
    return [
        _plan(pool, members, averaged, stages(members, averaged), leavers)
        for members, averaged, leavers in front.points()
    ]


def best_plan(plans: Sequence[Plan], *, max_drop: float) -> Plan:
    """The cheapest plan that loses at most ``max_drop`` points against the best single model.

    Raises:
        OfframpError: when none does.
    """
    kept = [plan for plan in plans if plan.drop <= max_drop / 100 + _SLACK]
    if not kept:
        least = min(plan.drop for plan in plans)
        raise OfframpError(
            f"no plan loses at most {max_drop:g} points against the best single model: the "
            f"closest loses {100 * least:.2f}"
        )
    return min(kept, key=lambda plan: (plan.cost, -plan.accuracy))


def decide(pool: Pool, plan: Plan) -> tuple[NDArray[np.int64], Bools]:
    """Replay a plan: which of its members every sample leaves at, and whether its answer is right.

    Both (N,).
    """
    return _replay(_stages(pool, plan.members, average=plan.average), plan.thresholds)


class _Stage:
    """What a cascade's answers are worth at one member, samples sorted by confidence there."""

    def __init__(self, score: Scores, correct: Bools) -> None:
        self.score, self.correct = score, correct
        self.order = np.argsort(-score, kind="stable")
        sorted_score = score[self.order]
        # numbers of leavers a threshold can make, without nobody and everybody
        self.leavers = np.flatnonzero(sorted_score[1:] != sorted_score[:-1]) + 1

    def threshold(self, leavers: int) -> float:
        """Exceeded by exactly so many samples; midway between two observed scores."""
        below, above = self.score[self.order[leavers]], self.score[self.order[leavers - 1]]
        return midway(float(below), float(above))


def _stages(pool: Pool, members: Sequence[int], *, average: bool) -> list[_Stage]:
    lengths = range(1, len(members) + 1)
    return [_Stage(*pool.stage(members[:n], average=average)) for n in lengths]


def _replay(
    stages: Sequence[_Stage], thresholds: Sequence[float]
) -> tuple[NDArray[np.int64], Bools]:
    last = stages[-1]
    at, right = np.full(len(last.score), len(stages) - 1), last.correct.copy()
    waiting = np.ones(len(right), dtype=bool)
    for number, (stage, threshold) in enumerate(zip(stages[:-1], thresholds, strict=True)):
        leaves = waiting & (stage.score > np.float32(threshold))
        at[leaves], right[leaves] = number, stage.correct[leaves]
        waiting &= ~leaves
    return at, right


def _pairs(pool: Pool, members: tuple[int, ...], *, average: bool, grid: int) -> Iterator[Block]:
    first, second = _stages(pool, members, average=average)
    gained = np.cumsum(first.correct[first.order].astype(np.int64) - second.correct[first.order])
    leavers = first.leavers
    right = second.correct.sum() + gained[leavers - 1]
    cost = pool.costs[members[0]] + pool.costs[members[1]] * (pool.count - leavers) / pool.count
    yield Block(members, average, cost, right, leavers[:, None])


def _triples(pool: Pool, members: tuple[int, ...], *, average: bool, grid: int) -> Iterator[Block]:
    first, second, third = _stages(pool, members, average=average)
    costs, count = pool.costs[list(members)], pool.count
    rank = np.empty(count, dtype=np.int64)  # of a sample by the first model's confidence
    rank[first.order] = np.arange(count)
    rank = rank[second.order]  # columns below: samples by the second model's confidence
    early = np.cumsum(first.correct[first.order])
    gain = second.correct[second.order].astype(np.int64) - third.correct[second.order]
    last = third.correct[second.order]
    chosen = first.leavers
    if len(chosen) > grid:
        chosen = np.unique(chosen[np.linspace(0, len(chosen) - 1, grid).round().astype(int)])
    if not len(second.leavers):
        return
    for start in range(0, len(chosen), _ROWS):
        left = chosen[start : start + _ROWS, None]  # (R, 1)
        stays = rank >= left  # (R, N)
        gone = np.cumsum(stays, axis=1)[:, second.leavers - 1]  # who leaves at the second
        gained = np.cumsum(stays * gain, axis=1)[:, second.leavers - 1]
        right = early[left - 1] + (stays * last).sum(axis=1, keepdims=True) + gained
        there, on = (count - left) / count, (count - left - gone) / count
        cost = costs[0] + costs[1] * there + costs[2] * on
        pairs = np.stack(np.broadcast_arrays(left, second.leavers[None]), axis=-1)
        yield Block(members, average, cost.ravel(), right.ravel(), pairs.reshape(-1, 2))


def _plan(
    pool: Pool, members: tuple[int, ...], average: bool, stages: Sequence[_Stage], leavers: Ints
) -> Plan:
    pairs = zip(stages[:-1], leavers, strict=True)
    thresholds = tuple(stage.threshold(int(count)) for stage, count in pairs)
    at, right = _replay(stages, thresholds)
    share = np.bincount(at, minlength=len(members)) / pool.count
    paid = np.cumsum(pool.costs[list(members)])
    best = pool.correct[pool.best]
    drop = float(best.mean() - right.mean())
    return Plan(
        members,
        thresholds,
        average,
        accuracy=float(right.mean()),
        cost=float(share @ paid),
        share=tuple(share.tolist()),
        drop=drop,
        error=drop_error(drop, float((best ^ right).mean()), pool.count),
    )


def as_document(pool: Pool, plans: Sequence[Plan], chosen: Plan) -> dict[str, Any]:
    """A search and what was chosen, for machines; accuracies in percent."""
    alone = zip(pool.names, pool.accuracy, pool.costs, strict=True)
    return {
        "unit": pool.unit,
        "samples": pool.count,
        "pool": [
            {"name": name, "accuracy": 100 * float(accuracy), "cost": float(cost)}
            for name, accuracy, cost in alone
        ],
        "best": pool.names[pool.best],
        "plans": [_described(pool, plan) for plan in plans],
        "chosen": _described(pool, chosen),
    }


def _described(pool: Pool, plan: Plan) -> dict[str, Any]:
    return {
        "models": [pool.names[m] for m in plan.members],
        "thresholds": list(plan.thresholds),
        "average": plan.average,
        "accuracy": 100 * plan.accuracy,
        "drop": 100 * plan.drop,
        "drop_error": 100 * plan.error,
        "cost": plan.cost,
        "share": list(plan.share),
        "saves": float(pool.costs[pool.best]) / plan.cost,
    }
