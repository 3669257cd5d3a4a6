"""Tiny models under every reducer, with weights under which tokens differ."""

from typing import Any

import torch

import offramp
from families import enliven
from offramp.chains.reduced import ReducedChain
from offramp.model import MultiExitModel
from tiny import TINY

# name → options that drop tokens on a 4 × 4 grid and four blocks
CASES: dict[str, dict[str, Any]] = {
    "tome": {"name": "tome", "r": 3},
    "tome restored": {"name": "tome", "r": [0, 4, 2], "restore": True},
    "evit": {"name": "evit", "keep": 0.6},
    "evit unfused": {"name": "evit", "keep": 0.6, "fuse": False},
    "dynamicvit": {"name": "dynamicvit", "keep": 0.7},
    "diffrate": {"name": "diffrate"},
    "evo_vit": {"name": "evo_vit"},
    "evo_vit layers": {"name": "evo_vit", "selection": "layer", "start": 2, "classifier": "class"},
    "evo_vit fast": {"name": "evo_vit", "fast": True, "every": 2, "keep": 0.4},
}
# options under which nothing may change at all
OFF: dict[str, dict[str, Any]] = {
    "tome": {"r": 0},
    "evit": {"keep": 1.0},
    "dynamicvit": {"keep": 1.0},
    "diffrate": {"prune": [17] * 4, "merge": [17] * 4},
    "evo_vit": {"keep": 1.0, "classifier": "class"},
}


def reduced_model(
    reducer: Any, exits: Any = "linear", *, name: str = "deit_tiny_patch16_224", **arguments: Any
) -> MultiExitModel:
    """Four blocks on 32 px, an exit after each of the first three, in eval mode."""
    torch.manual_seed(0)
    model = offramp.create(
        name,
        exits=exits,
        at=[1, 2, 3] if isinstance(exits, str) else None,
        num_classes=10,
        image_size=32,
        backbone_args=TINY | arguments,
        reducer=reducer,
    )
    enliven(model)
    return model.eval()


def reduced_chain(reducer: Any, **arguments: Any) -> ReducedChain:
    links = reduced_model(reducer, **arguments).chain
    assert isinstance(links, ReducedChain)
    return links


def noise(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
