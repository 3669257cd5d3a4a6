"""ViL's learned tables of positions and biases, and how they are resized for other images."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


def table(*shape: int) -> nn.Parameter:
    """A new table, truncated normal with standard deviation 0.02."""
    return nn.Parameter(trunc_normal_(torch.empty(shape), std=0.02))


def resize_line(line: Tensor, length: int) -> Tensor:
    """Positions along one side (1, L, C) → (1, length, C), linearly."""
    x = line.float().transpose(1, 2)
    x = F.interpolate(x, size=length, mode="linear", align_corners=False)
    return x.transpose(1, 2).to(line.dtype)


def resize_bias(biases: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Biases (rows·columns, h) from ``old`` to ``new`` rows and columns, bilinearly."""
    x = biases.float().T.unflatten(1, old)[None]  # (1, h, rows, columns)
    x = F.interpolate(x, size=new, mode="bilinear", align_corners=False)
    return x[0].flatten(1).T.contiguous().to(biases.dtype)
