"""JEI-DNN's gates: every exit holds a share of the samples' mass, and half of what is left stops.

Regol, Chataoui and Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network",
ICLR 2024, arXiv 2310.09163. The recipe ``jei_dnn`` trains the gates.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.base import ExitOutputs, Memory, register_policy
from offramp.policies.path import PathPolicy

HALF = 0.5 - 2.0**-25
"""The largest float32 below one half: what exceeds it is at least one half."""


class ExitMass(NamedTuple):
    """Where a sample's mass of 1 goes; L exits, the last without a gate.

    Attributes:
        early: (…, L-1) p_l = max(0, min(g_l, 1 - Σ_{j<l} g_j)), equation 8.
        final: (…) 1 - Σ p_l.
        hazard: (…, L-1) p_l over the mass that earlier exits left.
    """

    early: Tensor
    final: Tensor
    hazard: Tensor


def exit_mass(gates: Tensor) -> ExitMass:
    """Gates g (…, L-1), in (0, 1) each, as clipped shares: not the product g_l Π (1 - g_j)."""
    left = (1 - gates.cumsum(dim=-1) + gates).clamp_min(0)  # before exit l: 1 - Σ_{j<l} g_j
    early = torch.minimum(gates, left)
    return ExitMass(early, (1 - early.sum(dim=-1)).clamp_min(0), hazard(gates, left))


def hazard(gate: Tensor, left: Tensor) -> Tensor:
    """min(g, left) / left: the chance to stop here of whoever got here.

    Where nothing is left it is 1, the limit: the gates say that nobody gets here.
    """
    share = torch.minimum(gate, left) / left.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(left > 0, share, 1.0)


@register_policy("jei_dnn")
class Gated(PathPolicy):
    """Stop when the gates' hazard, the share of the mass left that is here, is high (JEI-DNN).

    The paper's rule is a hazard of at least one half at every exit (`rule`); other thresholds make
    a front of one model, where the paper trains a model for every price of cost. Reads the signal
    ``gate`` (B,), a logit; an exit that gives none holds no mass.

    Args:
        thresholds: (K,) in units of probability; the last is ignored.
    """

    needs = ("gate",)
    always = -0.1  # a hazard may be 0
    never = 1.0

    @classmethod
    def rule(cls, num_exits: int) -> Self:
        """The paper's policy: leave where the hazard is at least one half."""
        return cls.shared(HALF, num_exits)

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        """Σ g of the exits so far (B,)."""
        return (torch.zeros(batch, device=device),)

    def follow(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        said: Tensor | None = getattr(outputs, "gate", None)
        if said is None:
            raise OfframpError(
                f"policy 'jei_dnn' needs the signal 'gate', which exit {k} does not give"
            )
        # Records hold NaN where an exit is silent, such as the backbone's own head.
        logit = torch.nan_to_num(said.float().reshape(-1), nan=-torch.inf, neginf=-torch.inf)
        gate = torch.sigmoid(logit)
        score = hazard(gate, (1 - memory[0]).clamp_min(0))
        return score, outputs.logits.float(), (memory[0] + gate,)

    def final_answer(self, k: int, outputs: ExitOutputs, memory: Memory) -> Tensor:
        return outputs.logits.float()  # the backbone's own head has no gate
