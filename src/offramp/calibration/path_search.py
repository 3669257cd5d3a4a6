"""Path search: thresholds for policies whose score sums up the path so far.

Their score after exit k depends on which exits are active, but on no threshold. So for a choice of
active exits one walk over the logits gives scores and predictions, and from there on it is the
search of `search` on these columns. Which exits are on is tried in a few regular choices: another
choice is another path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offramp.calibration.front import Measure, Setting, locked_exits, measure
from offramp.calibration.records import Records
from offramp.calibration.replay import Decisions
from offramp.calibration.search import Leavers, ThresholdSearch
from offramp.calibration.smoothing import expected_worth
from offramp.calibration.sweep import Sweep
from offramp.costs.table import CostTable
from offramp.policies.base import Parameters
from offramp.policies.path import PathPolicy

_ROWS = 1024  # samples walked at once: what an ensemble remembers of them should stay in cache


def path_settings(
    family: type[PathPolicy],
    records: Records,
    costs: CostTable,
    *,
    fitted: Parameters,
    holds: Callable[[Measure], bool] | None = None,
    smooth: bool = True,
) -> list[Setting]:
    """Settings along the front of a family, for several choices of active exits.

    Args:
        fitted: from `Policy.fit`.
        holds: where a promise begins to hold the search looks closer.
        smooth: search on smooth curves of expected worth.
    """
    early, locked = records.num_exits - 1, locked_exits(records.meta.standalone)
    settings = []
    for active in path_choices(early, locked):
        walk = walk_path(family.shared(family.never, early + 1, **fitted), records, active)
        settings += _searched(family, walk, records, costs, fitted, holds, smooth)
    return settings


def path_choices(early: int, locked: Sequence[int]) -> list[tuple[int, ...]]:
    """No early exit, all of them, the deeper two thirds, every second, every third."""
    choices = [
        range(0),
        range(early),
        range(early // 3, early),
        range(1, early, 2),
        range(2, early, 3),
    ]
    return list(dict.fromkeys(tuple(sorted({*choice, *locked})) for choice in choices))


@dataclass(frozen=True)
class Walk:
    """All that a path policy with some exits on can do on records, whatever its thresholds.

    Attributes:
        exits: (J,) the exits that are on, the last one included.
        scores: (J, N) float32 after each of them.
        prediction: (J, N) what a sample that leaves there answers.
        num_exits: K.
    """

    exits: tuple[int, ...]
    scores: Tensor
    prediction: Tensor
    num_exits: int

    def decide(self, thresholds: Sequence[float]) -> Decisions:
        """Where every sample leaves, and with which answer, at thresholds (J,); the last of them
        is ignored."""
        place = torch.full(self.scores.shape[1:], len(self.exits) - 1)
        for at in reversed(range(len(self.exits) - 1)):
            place = torch.where(self.scores[at] > thresholds[at], at, place)
        prediction = self.prediction.gather(0, place[None])[0]
        return Decisions(torch.tensor(self.exits)[place], prediction, self.num_exits)


def walk_path(policy: PathPolicy, records: Records, active: Sequence[int]) -> Walk:
    """Follow every sample to the end."""
    last = records.num_exits - 1
    exits = (*sorted(active), last)
    scores = torch.empty(len(exits), len(records))
    prediction = torch.empty(len(exits), len(records), dtype=records.prediction.dtype)
    for first in range(0, len(records), _ROWS):
        rows = slice(first, min(first + _ROWS, len(records)))
        said = records.said(rows)
        memory = policy.start(rows.stop - rows.start, ids=records.ids[rows])
        for at, k in enumerate(exits):
            before = memory
            scores[at, rows], answer, memory = policy.follow(k, said[k], before)
            if k == last:
                answer = policy.final_answer(k, said[k], before)
            prediction[at, rows] = records.task.predict(answer)
    return Walk(exits, scores, prediction, records.num_exits)


def _searched(
    family: type[PathPolicy],
    walk: Walk,
    records: Records,
    costs: CostTable,
    fitted: Parameters,
    holds: Callable[[Measure], bool] | None,
    smooth: bool,
) -> list[Setting]:
    scores = walk.scores.T.numpy()
    worth = torch.stack([records.worth_of(column) for column in walk.prediction], dim=1).numpy()
    until = np.cumsum(costs.body)[list(walk.exits)]
    search = ThresholdSearch(
        scores,
        worth,
        np.diff(until, prepend=0.0) / costs.full,
        np.asarray(costs.head)[list(walk.exits)] / costs.full,
        expected=expected_worth(scores, worth) if smooth else None,
        locked=range(len(walk.exits) - 1),  # without one of them it would be another path
        always=family.always,
        never=family.never,
    )
    sweep = Sweep(search)
    found = [*sweep.settings(), *(sweep.refine(holds) if holds else [])]

    def setting(leavers: Leavers) -> Setting:
        chosen = search.thresholds(leavers)
        by_exit = dict(zip(walk.exits, chosen, strict=True))
        thresholds = [by_exit.get(k, family.never) for k in range(walk.num_exits)]
        active = walk.exits[:-1]
        # Measured anew: the search takes this path's last answer for the full model's.
        measured = measure(walk.decide(chosen), records, costs, active)
        return Setting(family(thresholds, **fitted), active, measured)

    return [setting(leavers) for leavers in dict.fromkeys(found)]
