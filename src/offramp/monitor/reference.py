"""What an operating point does on records: where samples leave, and how sure their answers are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.calibration.point import OperatingPoint
from offramp.calibration.records import CHUNK, Records
from offramp.calibration.replay import active_exits
from offramp.policies.base import Policy
from offramp.runtime.prediction import ExitTables, Prediction, temperatures_of

Floats = NDArray[np.float64]
DIGITS = 4
"""Confidences are compared to so many digits: behind them engines and batch sizes differ."""


@dataclass(frozen=True)
class Sight:
    """What is seen of n samples.

    Attributes:
        exits: (n,) int64, where they left.
        readings: (n,) how sure their answers were; in regression the values answered.
        cut: (n,) bool, whom a deadline ended before the policy did.
    """

    exits: NDArray[np.int64]
    readings: Floats
    cut: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.exits)

    def last(self, count: int) -> "Sight":
        """The newest ``count`` samples."""
        return Sight(self.exits[-count:], self.readings[-count:], self.cut[-count:])


def sight_of(prediction: Prediction) -> Sight:
    """What a runner's prediction shows of its samples."""
    cut = torch.zeros_like(prediction.exit) if prediction.cut is None else prediction.cut
    return Sight(
        prediction.exit.cpu().numpy().astype(np.int64),
        reading(prediction).double().cpu().numpy(),
        cut.bool().cpu().numpy(),
    )


def reading(prediction: Prediction) -> Tensor:
    """The one number per sample that is watched: the largest probability, or the value (B,)."""
    if prediction.tables.task == "regression":
        return prediction.values
    return prediction.probs.float().amax(-1)


class Reference:
    """What the records predict of live samples.

    Args:
        point: whose policy walks over the records.
        records: of the point's model, engine and precision, and of data like that to come. Those
            of a held-out split are the purer reference: thresholds were not chosen on them.

    Attributes:
        leaves: exits where samples may leave, in order; the last one last.
        sight: what a runner would have shown of the records' samples.
    """

    def __init__(self, point: OperatingPoint, records: Records) -> None:
        meta = records.meta
        point.check(meta.fingerprint, meta.engine, meta.precision)
        self.leaves = (*active_exits(point.active, meta.num_exits), meta.num_exits - 1)
        self.classes = meta.task != "regression"
        seen = sight_of(_walk(point.policy_object(), records, self.leaves))
        self.sight = Sight(seen.exits, self.rounded(seen.readings), seen.cut)
        self.sorted = {k: np.sort(self.sight.readings[seen.exits == k]) for k in self.leaves}

    def rounded(self, readings: Floats) -> Floats:
        """Readings as they are compared."""
        return np.round(readings, DIGITS) if self.classes else readings


def _walk(policy: Policy, records: Records, leaves: Sequence[int]) -> Prediction:
    """The answers a runner gives to the samples of ``records``."""
    meta = records.meta
    policy.check(meta.num_exits)
    tables = ExitTables(
        torch.tensor(meta.blocks_run), None, temperatures_of(policy), task=meta.task
    )
    parts = []
    for start in range(0, len(records), CHUNK):
        rows = slice(start, min(start + CHUNK, len(records)))
        parts.append(_walk_rows(policy, records, leaves, rows))
    logits, exits = (torch.cat(part) for part in zip(*parts, strict=True))
    return Prediction(logits, exits, tables)


def _walk_rows(
    policy: Policy, records: Records, leaves: Sequence[int], rows: slice
) -> tuple[Tensor, Tensor]:
    count, last = rows.stop - rows.start, leaves[-1]
    memory = policy.start(count, ids=records.ids[rows])
    left = torch.zeros(count, dtype=torch.bool)
    exits = torch.full((count,), last)
    logits: Tensor | None = None
    for k in leaves:
        stop, answer, memory = policy.step(k, records.outputs(k, rows), memory)
        leaving = ~left if k == last else stop & ~left
        exits[leaving] = k
        logits = answer.clone() if logits is None else torch.where(leaving[:, None], answer, logits)
        left |= stop
    assert logits is not None
    return logits, exits
