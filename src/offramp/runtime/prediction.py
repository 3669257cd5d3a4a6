"""What a runner answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExitTables:
    """Per-exit constants a prediction looks its samples up in (K exits)."""

    blocks: Tensor  # (K,) blocks run by a sample that leaves there
    macs: Tensor | None  # (K,) MACs of such a sample, active heads included
    temperatures: Tensor | None  # (K,) softmax temperatures


@dataclass(frozen=True)
class Prediction:
    """Answers for B samples, in the order they were given.

    ``logits (B, C)`` is the policy's answer, ``exit (B,)`` the index among all exits (the
    backbone's own head is the last). Everything else is derived when first read, so that a
    latency-critical caller does not pay for it.
    """

    logits: Tensor
    exit: Tensor
    tables: ExitTables

    def __len__(self) -> int:
        return len(self.exit)

    @cached_property
    def labels(self) -> Tensor:
        """Class index of the largest logit, ``(B,)``."""
        return self.logits.argmax(-1)

    @cached_property
    def probs(self) -> Tensor:
        """Softmax with the temperature of the exit each sample left at, ``(B, C)``."""
        if self.tables.temperatures is None:
            return self.logits.softmax(-1)
        scale = self.tables.temperatures.to(self.logits)[self.exit]
        return (self.logits / scale[:, None]).softmax(-1)

    @cached_property
    def blocks(self) -> Tensor:
        """Blocks run for each sample, ``(B,)``."""
        return self.tables.blocks.to(self.exit.device)[self.exit]

    @cached_property
    def cost(self) -> Tensor | None:
        """MACs spent on each sample, heads included, ``(B,)``; None without a cost table."""
        macs = self.tables.macs
        return None if macs is None else macs.to(self.exit.device)[self.exit]


def join(predictions: Sequence[Prediction]) -> Prediction:
    """Concatenate the predictions of one runner."""
    return Prediction(
        torch.cat([prediction.logits for prediction in predictions]),
        torch.cat([prediction.exit for prediction in predictions]),
        predictions[0].tables,
    )
