"""Learned to exit: stop when the exit itself says that it is right.

BERxiT, Xin et al., EACL 2021.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.base import ExitOutputs, Parameters, register_policy
from offramp.policies.threshold import ThresholdPolicy


@register_policy("learned")
class Learned(ThresholdPolicy):
    """Stop when an exit's learned certainty of being right exceeds the threshold (BERxiT).

    Reads the signal ``certainty`` (B,), a probability: 1 - u, where BERxiT stops below a threshold
    on the learned chance of an error u. It serves classes and numbers alike. An exit that gives
    no certainty is never sure.

    Args:
        thresholds: (K,) in units of probability; the last is ignored.
    """

    needs = ("certainty",)
    tasks = ("classification", "regression")
    always = -1.0
    never = 1.0

    def __init__(
        self, thresholds: Sequence[float], temperatures: Sequence[float] | None = None
    ) -> None:
        super().__init__(thresholds, temperatures)
        if set(self.temperatures) != {1.0}:
            raise OfframpError(
                "policy 'learned' has no temperatures: it reads what exits learned, not a softmax"
            )

    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        certainty: Tensor | None = getattr(outputs, "certainty", None)
        if certainty is None:
            raise OfframpError(
                f"policy 'learned' needs the signal 'certainty', which exit {k} does not give"
            )
        # Records hold NaN where an exit is silent, such as the backbone's own head.
        return torch.nan_to_num(certainty.float().reshape(-1), nan=self.always)

    def parameters(self) -> Parameters:
        return {"thresholds": list(self.thresholds)}
