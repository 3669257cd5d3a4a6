"""What leaves a model with exits: one answer per sample, and the exit it left at."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from offramp.calibration.records import CHUNK, Records
from offramp.calibration.replay import active_exits
from offramp.errors import OfframpError
from offramp.policies.base import Policy


@dataclass(frozen=True)
class Answers:
    """Answers for N samples.

    Attributes:
        logits: (N, C), divided by the temperature of the exit where a policy has temperatures. A
            softmax of these is the answer's probability: nothing here is soft-maxed twice.
        exit: (N,) int64.
        labels, ids: (N,) int64.
        num_exits: K.
    """

    logits: Tensor
    exit: Tensor
    labels: Tensor
    ids: Tensor
    num_exits: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, C)"""
        return torch.softmax(self.logits, dim=-1)

    @cached_property
    def confidence(self) -> Tensor:
        """The largest probability (N,)."""
        return self.probabilities.amax(dim=-1)

    @cached_property
    def right(self) -> Tensor:
        """(N,) bool"""
        return self.logits.argmax(dim=-1) == self.labels

    def part(self, rows: Tensor) -> "Answers":
        """Those at positions, or under a mask."""
        return Answers(
            self.logits[rows], self.exit[rows], self.labels[rows], self.ids[rows], self.num_exits
        )


def exit_answers(records: Records, k: int, temperatures: Sequence[float] | None = None) -> Answers:
    """What exit ``k`` alone says about every sample."""
    _expect_classes(records)
    scale = 1.0 if temperatures is None else temperatures[k]
    exits = torch.full((len(records),), k)
    logits = records.logits[:, k] / scale
    return Answers(logits, exits, records.labels, records.ids, records.num_exits)


def mixture_answers(
    policy: Policy, records: Records, active: Sequence[int] | None = None
) -> Answers:
    """What leaves under a policy: `offramp.calibration.replay`, with whole answers.

    Args:
        active: early exits that are on; all of them when omitted.
    """
    _expect_classes(records)
    policy.check(records.num_exits)
    walked = (*active_exits(active, records.num_exits), records.num_exits - 1)
    rows = [slice(i, min(i + CHUNK, len(records))) for i in range(0, len(records), CHUNK)]
    parts = [_walk(policy, records, walked, part) for part in rows]
    exits, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    temperatures = getattr(policy, "temperatures", None)
    if temperatures is not None:
        logits = logits / torch.tensor(temperatures)[exits][:, None]
    return Answers(logits, exits, records.labels, records.ids, records.num_exits)


def _walk(
    policy: Policy, records: Records, walked: Sequence[int], rows: slice
) -> tuple[Tensor, Tensor]:
    """Exits (n,) and answers (n, C) of some samples."""
    said, last = records.said(rows), walked[-1]
    memory = policy.start(rows.stop - rows.start, ids=records.ids[rows])
    exits = torch.full((rows.stop - rows.start,), last)
    left = torch.zeros(len(exits), dtype=torch.bool)
    answers = torch.zeros_like(said[last].logits, dtype=torch.float32)
    for k in walked[:-1]:
        stop, answer, memory = policy.step(k, said[k], memory)
        leaving = stop & ~left
        exits = torch.where(leaving, k, exits)
        answers = torch.where(leaving[:, None], answer.float(), answers)
        left = left | stop
    final = policy.final_answer(last, said[last], memory).float()
    return exits, torch.where(left[:, None], answers, final)


def _expect_classes(records: Records) -> None:
    if records.meta.task != "classification":
        raise OfframpError(
            f"these scores are about probabilities of classes, and a {records.meta.task} model "
            "gives none"
        )
