"""Replay: run a policy over records, as it would have run live."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.calibration.records import CHUNK, Records
from offramp.errors import OfframpError
from offramp.policies.base import Policy, ScalarPolicy


@dataclass(frozen=True)
class Decisions:
    """Where every sample leaves, and with which answer.

    Attributes:
        exit: (N,) int64, the exit it leaves at, counted among all exits.
        prediction: (N,) int64, the class it leaves with; in regression float32, the value.
        num_exits: K.
    """

    exit: Tensor
    prediction: Tensor
    num_exits: int

    @property
    def exit_share(self) -> tuple[float, ...]:
        """Share of the samples that leave at each exit: (K,), sums to 1."""
        counts = torch.bincount(self.exit, minlength=self.num_exits).double()
        return tuple((counts / counts.sum()).tolist())


def active_exits(active: Sequence[int] | None, num_exits: int) -> tuple[int, ...]:
    """Sorted early exits that are on (all when ``None``), or `OfframpError` for a wrong number."""
    if active is None:
        return tuple(range(num_exits - 1))
    wrong = [k for k in active if not 0 <= k < num_exits - 1]
    if wrong:
        raise OfframpError(
            f"active exit {wrong[0]} does not exist: early exits are numbered 0…{num_exits - 2}"
        )
    return tuple(sorted(set(active)))


def replay(
    policy: Policy,
    records: Records,
    active: Sequence[int] | None = None,
    *,
    columns: Tensor | None = None,
) -> Decisions:
    """Decide every sample of ``records`` with the code that runs live.

    Policies that read one scalar per exit decide on stored scalars; others step over the logits.

    Args:
        columns: (K, N) of what a scalar policy reads, where it is in hand already.

    Raises:
        OfframpError: when the policy does not fit the records.
    """
    policy.check(records.num_exits)
    policy.check_task(records.meta.task)
    walked = (*active_exits(active, records.num_exits), records.num_exits - 1)
    if isinstance(policy, ScalarPolicy):
        return _replay_scalars(policy, records, walked, columns)
    parts = [
        _replay_logits(policy, records, walked, slice(start, min(start + CHUNK, len(records))))
        for start in range(0, len(records), CHUNK)
    ]
    exits, predictions = (torch.cat(part) for part in zip(*parts, strict=True))
    return Decisions(exits, predictions, records.num_exits)


def _replay_scalars(
    policy: ScalarPolicy, records: Records, walked: Sequence[int], columns: Tensor | None
) -> Decisions:
    columns = records.readings(policy).T if columns is None else columns
    exits = torch.full((len(records),), walked[-1])
    left = torch.zeros(len(records), dtype=torch.bool)
    memory = policy.start(len(records), ids=records.ids)
    for k in walked[:-1]:
        stop, memory = policy.decide(k, columns[k], memory)
        exits = torch.where(stop & ~left, k, exits)
        left = left | stop
    prediction = records.prediction.gather(1, exits[:, None])[:, 0]
    return Decisions(exits, prediction, records.num_exits)


def _replay_logits(
    policy: Policy, records: Records, walked: Sequence[int], rows: slice
) -> tuple[Tensor, Tensor]:
    count = rows.stop - rows.start
    exits = torch.full((count,), walked[-1])
    predictions = torch.zeros(count, dtype=records.prediction.dtype)
    left = torch.zeros(count, dtype=torch.bool)
    memory = policy.start(count, ids=records.ids[rows])
    said = records.said(rows)
    for k in walked[:-1]:
        stop, answer, memory = policy.step(k, said[k], memory)
        leaving = stop & ~left
        exits = torch.where(leaving, k, exits)
        predictions = torch.where(leaving, records.task.predict(answer), predictions)
        left = left | stop
    answer = policy.final_answer(walked[-1], said[walked[-1]], memory)
    return exits, torch.where(left, predictions, records.task.predict(answer))
