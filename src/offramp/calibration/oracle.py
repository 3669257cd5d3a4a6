"""The oracle: what exits could save if somebody knew the labels. For plots; nobody can run it."""

from collections.abc import Sequence

import torch

from offramp.calibration.front import Measure, measure
from offramp.calibration.records import Records
from offramp.calibration.replay import Decisions, active_exits
from offramp.costs.table import CostTable
from offramp.errors import OfframpError


def oracle(
    records: Records, active: Sequence[int] | None = None, *, deepest: int | None = None
) -> Decisions:
    """Every sample leaves at the first exit that is right about it, hopeless ones at the first.

    No policy that answers with the logits of the exit it leaves at is right more often, or as
    often for less; one that combines exits may be.

    Args:
        active: early exits that are on; all of them when omitted.
        deepest: no sample goes further than this exit; the last one when omitted.

    Raises:
        OfframpError: for records without labels that are right or wrong.
    """
    last = records.num_exits - 1
    walked = [*active_exits(active, records.num_exits), last]
    open_to = [k for k in walked if deepest is None or k <= deepest] or walked[:1]
    if records.task.targets != torch.int64:
        raise OfframpError(
            f"the oracle needs answers that are right or wrong, not {records.meta.task}"
        )
    right = records.correct[:, open_to]
    place = right.int().argmax(dim=1)  # the first right one; 0 where none is
    exits = torch.tensor(open_to)[place]
    prediction = records.prediction.gather(1, exits[:, None])[:, 0]
    return Decisions(exits, prediction, records.num_exits)


def oracle_front(
    records: Records, costs: CostTable, active: Sequence[int] | None = None
) -> list[Measure]:
    """Corners of the upper bound, cheapest first; budgets between two corners are mixtures.

    With the exits on that it uses, from all samples at the first exit to each at the first exit
    that is right. Extra cost per extra right answer only grows from corner to corner, so no choice
    of samples lies above the line through them.
    """
    early = active_exits(active, records.num_exits)
    depths = (*early, records.num_exits - 1)
    return [measure(oracle(records, early, deepest=k), records, costs, early) for k in depths]
