"""What all families with one threshold per exit share."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from offramp.errors import OfframpError
from offramp.policies.arguments import numbers
from offramp.policies.base import Parameters, Policy


class Thresholded(Policy):
    """A policy that stops when a score exceeds the exit's threshold, strictly; higher is surer.

    Args:
        thresholds: (K,) one per exit, in units of the score; the last is ignored.

    Attributes:
        always: a threshold that every sample exceeds.
        never: a threshold that no sample exceeds.
    """

    always: ClassVar[float]
    never: ClassVar[float]

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = numbers(self.name, "thresholds", thresholds)

    @classmethod
    def shared(cls, threshold: float, num_exits: int, **fitted: Any) -> Self:
        """The same threshold at every exit, as the papers use it; ``fitted`` as `fit` gives it."""
        return cls([threshold] * num_exits, **fitted)

    def parameters(self) -> Parameters:
        return {"thresholds": list(self.thresholds)}

    def check(self, num_exits: int) -> None:
        if len(self.thresholds) != num_exits:
            raise OfframpError(
                f"policy {self.name!r} has {len(self.thresholds)} thresholds, "
                f"but the model has {num_exits} exits"
            )

    @classmethod
    def candidates(cls, num_exits: int, **fitted: Any) -> list[Self]:
        low = max(cls.always, -math.log(1000))  # below -ln C no entropy score is found
        inner = [low + (cls.never - low) * step / 20 for step in range(1, 20)]
        return [cls.shared(value, num_exits, **fitted) for value in (cls.always, *inner, cls.never)]
