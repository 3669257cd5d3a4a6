"""Conformity scores: how little a class conforms to an answer's probabilities."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Method = Literal["lac", "aps", "raps"]


def lac(probabilities: Tensor, draws: Tensor, *, penalty: float, free: int) -> Tensor:
    """1 - p_k: the smallest sets on average (Sadinle, Lei and Wasserman, JASA 2019)."""
    return 1 - probabilities


def aps(probabilities: Tensor, draws: Tensor, *, penalty: float, free: int) -> Tensor:
    """Mass of the likelier classes and u · p_k: sets grow where an answer is unsure (Romano, Sesia
    and Candès, NeurIPS 2020)."""
    return raps(probabilities, draws, penalty=0.0, free=0)


def raps(probabilities: Tensor, draws: Tensor, *, penalty: float, free: int) -> Tensor:
    """APS, and ``penalty`` for every rank beyond ``free``, which cuts the long tails of large sets
    (Angelopoulos et al., ICLR 2021)."""
    p, order = probabilities.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, p.shape[-1] + 1, device=p.device)
    before = p.cumsum(dim=-1) - p
    ordered = before + draws[:, None] * p + penalty * (ranks - free).clamp_min(0)
    return torch.empty_like(p).scatter_(-1, order, ordered)


METHODS: dict[Method, Callable[..., Tensor]] = {"lac": lac, "aps": aps, "raps": raps}
"""Probabilities (B, C), draws u (B,) in [0, 1] → scores (B, C)."""
