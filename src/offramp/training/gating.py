"""What JEI-DNN's gates and heads are trained on, as formulas.

Regol, Chataoui and Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network",
ICLR 2024, arXiv 2310.09163, and its released code. L exits, the last without a gate.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Literal["loss", "error", "confidence"]
Targets = Literal["subsequent", "only", "ignore", "regret"]
Balance = Literal["cumulative", "exact", "none"]
Coupling = Literal["detached", "as_released"]

MOST = 5.0
"""The largest class weight; one over it the least of cumulative counts."""


def exit_values(losses: Tensor, logits: Tensor, targets: Tensor, criterion: Criterion) -> Tensor:
    """What stopping at each exit is worth avoiding, (B, L), less is better.

    ``loss``: cross-entropy. ``error``: -1 where the exit is right. ``confidence``: minus the
    largest probability where it is right.

    Args:
        losses: (B, L) cross-entropy.
        logits: (B, L, C).
        targets: (B,) classes or (B, C).
    """
    if criterion == "loss":
        return losses
    labels = targets.argmax(dim=-1) if targets.ndim == 2 else targets
    right = (logits.argmax(dim=-1) == labels[:, None]).float()
    if criterion == "error":
        return -right
    return -right * torch.softmax(logits.float(), dim=-1).amax(dim=-1)


def best_exit(paid: Tensor) -> Tensor:
    """l* = argmin_l (v_l + λ c_l) of what is paid (B, L), the first where several are."""
    return paid.argmin(dim=-1)


def gate_targets(best: Tensor, early: int, kind: Targets) -> tuple[Tensor, Tensor]:
    """What the gates should say, and which of them are asked: both (B, L-1).

    ``subsequent``: 1 from l* on, for who may leave at l* may leave at any later exit. ``only``: 1
    at l* alone. ``ignore``: the same, gates behind l* not asked.

    Args:
        best: l* (B,).
        early: L-1.
    """
    exits, best = torch.arange(early, device=best.device), best[:, None]
    asked = torch.ones(len(best), early, device=best.device)
    if kind == "subsequent":
        return (exits >= best).float(), asked
    return (exits == best).float(), (exits <= best).float() if kind == "ignore" else asked


def lessons(paid: Tensor, gates: Tensor, kind: Targets) -> tuple[Tensor, Tensor]:
    """What gates learn where v_l + λ c_l (B, L) are paid: targets and how much each counts.

    Args:
        gates: a (B, L-1), logits, as they are now.
    """
    if kind == "regret":
        return stopping_targets(paid, gates)
    return gate_targets(best_exit(paid), gates.shape[1], kind)


def stopping_targets(paid: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Whether stopping at each exit is better than going on, and by how much: both (B, L-1).

    From the last gate to the first: going on from exit l costs what is paid where the gates behind
    it let a sample go (Becker, Cheridito and Jentzen, "Deep optimal stopping", JMLR 2019). With the
    differences as weights, a gate above one half is one whose samples lose less by stopping on
    average; targets at the best exit know the labels, and no gate can.

    Args:
        paid: v_l + λ c_l (B, L).
        gates: a (B, L-1), logits.
    """
    ahead, saved = paid[:, -1], []
    for place in reversed(range(gates.shape[1])):
        saved.append(ahead - paid[:, place])
        ahead = torch.where(gates[:, place] >= 0, paid[:, place], ahead)
    regret = torch.stack(saved[::-1], dim=1)
    return (regret > 0).float(), regret.abs()


def gate_loss(
    logits: Tensor, targets: Tensor, positive: Tensor, asked: Tensor | None = None
) -> Tensor:
    """Mean over samples and gates of the weighted binary cross-entropy.

    Args:
        logits: a (B, L-1).
        targets: t (B, L-1).
        positive: weight (L-1,) where t = 1.
        asked: (B, L-1), how much each counts; all the same when omitted.
    """
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), targets, pos_weight=positive, reduction="none"
    )
    if asked is None:
        return losses.mean()
    least = torch.finfo(losses.dtype).tiny
    return (losses * asked).sum() / asked.sum().clamp_min(least)


def class_balance(counts: Tensor, kind: Balance) -> Tensor:
    """Weight of the ones in each gate's targets, min((N - n)/n, 5): (L-1,).

    Args:
        counts: (L,) samples with l* = l.
        kind: n counts samples whose target is 1, l* ≤ l (``cumulative``, as the targets ask; at
            least 1/5, or a gate that should let everybody go would learn nothing), or, as released,
            those with l* = l (``exact``), which weights deep gates' many ones up to five times and
            so hastens everybody out. ``none``: weights of 1.
    """
    early = counts[:-1].double()
    if kind == "none":
        return torch.ones_like(counts[:-1], dtype=torch.float32)
    held = early.cumsum(dim=0) if kind == "cumulative" else early
    least = 1 / MOST if kind == "cumulative" else 0.0
    return ((counts.sum() - held) / held.clamp_min(0.1)).clamp(least, MOST).float()


def coupled_loss(mass: Tensor, losses: Tensor, coupling: Coupling) -> Tensor:
    """Mean over samples and exits of P·C·r, r = Σ_l C / Σ_l P·C: heads learn what leaves there.

    ``detached``: r is a number, so that exit l of a sample gets the gradient r·P_l and every sample
    keeps its total loss. ``as_released``: r is differentiated too, and the weights cancel: loss and
    gradient are those of the plain mean of C.

    Args:
        mass: P (B, L-1), without gradient.
        losses: C (B, L-1).
    """
    weighted = mass * losses
    ratio = losses.sum(dim=1) / weighted.sum(dim=1).clamp_min(torch.finfo(weighted.dtype).tiny)
    if coupling == "detached":
        ratio = ratio.detach()
    return (weighted * ratio[:, None]).mean()


def warm_up_weights(exits: int) -> list[float]:
    """Weights of the L losses before there are gates: L, L-1, …, 2 of the early ones, then 1."""
    return [float(exits - k) for k in range(exits)]
