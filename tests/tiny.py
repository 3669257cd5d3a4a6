"""A small multi-exit model for every suite."""

from typing import Any

import torch

import offramp
from offramp.model import MultiExitModel

TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}


def tiny_model(
    exits: Any = "lgvit",
    *,
    backbone: str = "deit_tiny_patch16_224",
    num_classes: int = 10,
    image_size: int = 32,
    seed: int = 0,
    **arguments: Any,
) -> MultiExitModel:
    """A small multi-exit model whose norms have seen some data, in eval mode."""
    torch.manual_seed(seed)
    model = offramp.create(
        backbone,
        exits=exits,
        at=[1, 2, 3] if isinstance(exits, str) else None,
        num_classes=num_classes,
        image_size=image_size,
        backbone_args=TINY | arguments,
    )
    with torch.no_grad():
        for name, buffer in model.exits.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
        for name, parameter in model.exits.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model.eval()
