"""Position tables that are computed rather than learned."""

import torch
from torch import Tensor


def sinusoid(tokens: int, dim: int) -> Tensor:
    """Fixed position table (1, N, C): sin and cos of n / 10000^(2⌊j/2⌋/C), by turns over j."""
    place = torch.arange(tokens, dtype=torch.float64)[:, None]
    angle = place / 10000 ** (2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table[None].float()
