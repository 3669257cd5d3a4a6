"""Attention by plain products, where torch's fused one is the slower of the two."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

FUSED = "fused_attn"  # timm's name for the choice, in every attention layer


@contextmanager
def plain_attention(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """While it lasts, timm's attention layers multiply their matrices one after the other.

    On a CPU the backward pass of torch's fused attention works head by head; in bf16 that costs
    more than it saves. The answers are the same but for rounding. Elsewhere nothing changes.
    """
    slow = device.type == "cpu" and precision == "bf16"
    layers = [layer for layer in model.modules() if slow and getattr(layer, FUSED, False)]
    for layer in layers:
        setattr(layer, FUSED, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, FUSED, True)
