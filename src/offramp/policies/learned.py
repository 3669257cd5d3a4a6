"""Learned to exit: stop when the exit itself says that it is right.

BERxiT, Xin et al., EACL 2021.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.base import ExitOutputs, Parameters, register_policy
from offramp.policies.threshold import ThresholdPolicy


class SignalPolicy(ThresholdPolicy):
    """Stop when a chance that exits give themselves, the signal in `needs`, exceeds a threshold.

    An exit that does not give it never stops anybody.

    Args:
        thresholds: (K,) in units of probability; the last is ignored.
    """

    always = -1.0
    never = 1.0

    def __init__(
        self, thresholds: Sequence[float], temperatures: Sequence[float] | None = None
    ) -> None:
        super().__init__(thresholds, temperatures)
        if set(self.temperatures) != {1.0}:
            raise OfframpError(
                f"policy {self.name!r} has no temperatures: it reads what exits learned, not a "
                "softmax"
            )

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        (signal,) = self.needs
        said: Tensor | None = getattr(outputs, signal, None)
        if said is None:
            raise OfframpError(
                f"policy {self.name!r} needs the signal {signal!r}, which exit {k} does not give"
            )
        # Records hold NaN where an exit is silent, such as the backbone's own head.
        return torch.nan_to_num(self.chance(said.float().reshape(-1)), nan=self.always)

    def chance(self, said: Tensor) -> Tensor:
        """The signal (B,) as a probability."""
        return said

    def parameters(self) -> Parameters:
        return {"thresholds": list(self.thresholds)}


@register_policy("learned")
class Learned(SignalPolicy):
    """Stop when an exit's learned certainty of being right exceeds the threshold (BERxiT).

    Reads the signal ``certainty`` (B,), a probability: 1 - u, where BERxiT stops below a threshold
    on the learned chance of an error u. It serves classes and numbers alike.
    """

    needs = ("certainty",)
    tasks = ("classification", "regression")
