"""Gates read one by one: each says whether to stop, whatever the gates before it said.

What an optimal stopping rule needs: Becker, Cheridito and Jentzen, "Deep optimal stopping", JMLR
2019. The recipe ``jei_dnn`` trains such gates with ``turns.targets: regret``.
"""

from typing import Self

import torch
from torch import Tensor

from offramp.policies.base import register_policy
from offramp.policies.jei_dnn import HALF, ExitMass
from offramp.policies.learned import SignalPolicy


def stopping_mass(gates: Tensor) -> ExitMass:
    """Gates g (…, L-1) as hazards themselves: g_l Π_{j<l} (1 - g_j) of the mass is at exit l."""
    left = torch.cumprod(1 - gates, dim=-1)
    early = gates * torch.cat((torch.ones_like(left[..., :1]), left[..., :-1]), dim=-1)
    return ExitMass(early, left[..., -1], gates)


@register_policy("stopping")
class Stopping(SignalPolicy):
    """Stop when an exit's gate says so: by itself at least one half under its `rule`.

    Policy ``jei_dnn`` reads the same signal ``gate`` (B,), a logit, as a share of mass, which is
    the larger part of what is left the later it comes. Gates that learned from targets which are 1
    from the best exit on give, read by themselves, the chance that the best exit has been passed.
    """

    needs = ("gate",)

    @classmethod
    def rule(cls, num_exits: int) -> Self:
        """Leave where the gate is at least one half."""
        return cls.shared(HALF, num_exits)

    def chance(self, said: Tensor) -> Tensor:
        return torch.sigmoid(said)
