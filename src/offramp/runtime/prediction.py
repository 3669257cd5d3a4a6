"""What a runner answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.policies import Policy
    from offramp.uncertainty.conformal import Conformal


@dataclass(frozen=True)
class ExitTables:
    """Per-exit constants a prediction looks its samples up in (K exits)."""

    blocks: Tensor  # (K,) blocks run by a sample that leaves there
    macs: Tensor | None  # (K,) MACs of such a sample, active heads included
    temperatures: Tensor | None  # (K,) softmax temperatures
    task: str = "classification"
    conformal: "Conformal | None" = None  # what makes prediction sets


@dataclass(frozen=True)
class Prediction:
    """Answers for B samples, in the order they were given.

    ``logits (B, C)`` is the policy's answer, ``exit (B,)`` the index among all exits (the
    backbone's own head is the last). ``cut (B,)`` bool, with a deadline only: the sample was still
    under way when time ran out, and has the answer of the newest exit that was finished. Everything
    else is derived when first read, so that a latency-critical caller does not pay for it.
    """

    logits: Tensor
    exit: Tensor
    tables: ExitTables
    cut: Tensor | None = None

    def __len__(self) -> int:
        return len(self.exit)

    @cached_property
    def labels(self) -> Tensor:
        """Class index of the largest logit, ``(B,)``."""
        self._expect("classification", "values")
        return self.logits.argmax(-1)

    @cached_property
    def values(self) -> Tensor:
        """The number a regression model answers, in the unit of its targets, ``(B,)``."""
        self._expect("regression", "labels and probs")
        return self.logits[:, 0]

    @cached_property
    def probs(self) -> Tensor:
        """Softmax with the temperature of the exit each sample left at, ``(B, C)``."""
        self._expect("classification", "values")
        if self.tables.temperatures is None:
            return self.logits.softmax(-1)
        scale = self.tables.temperatures.to(self.logits)[self.exit]
        return (self.logits / scale[:, None]).softmax(-1)

    @cached_property
    def sets(self) -> Tensor:
        """Which classes each prediction set holds, ``(B, C)`` bool (see `Runner.conformal`)."""
        if self.tables.conformal is None:
            raise OfframpError(
                "no prediction sets: give the runner calibrated ones, runner.conformal = "
                "offramp.uncertainty.conformal(point, records)"
            )
        return self.tables.conformal.sets(self.probs, self.exit)

    def _expect(self, task: str, instead: str) -> None:
        if self.tables.task != task:
            raise OfframpError(f"these are answers of a {self.tables.task} model: read {instead}")

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
        _join_cut(predictions),
    )


def _join_cut(predictions: Sequence[Prediction]) -> Tensor | None:
    """Who was cut, where at least one of the predictions had a deadline."""
    if all(prediction.cut is None for prediction in predictions):
        return None
    return torch.cat(
        [
            torch.zeros_like(p.exit, dtype=torch.bool) if p.cut is None else p.cut
            for p in predictions
        ]
    )


def temperatures_of(policy: "Policy | None") -> Tensor | None:
    """Softmax temperatures (K,) of a policy that has any other than 1."""
    temperatures = getattr(policy, "temperatures", None)
    scaled = temperatures is not None and set(temperatures) != {1.0}
    return torch.tensor(temperatures) if scaled else None
