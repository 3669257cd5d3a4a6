"""Where an image's patches go, step by step: what pictures of a reducer show."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offramp.chains.reduced import ReducedChain, TokenMap
from offramp.costs.evaluating import evaluating
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.model import MultiExitModel


@torch.no_grad()
def kept_tokens(model: "MultiExitModel | ReducedChain", images: Tensor) -> list[TokenMap]:
    """Which tokens hold the patches of each image after every step.

    Args:
        model: with a reducer.
        images: (B, 3, H, W).
    """
    links = model if isinstance(model, ReducedChain) else model.chain
    if not isinstance(links, ReducedChain):
        raise OfframpError("this model has no reducer, so it keeps every token")
    tracker = copy.copy(links.reducer)  # shares its parameters
    tracker.tracking = True
    with evaluating(links):
        traced = ReducedChain(links.base, tracker.eval())
        state, maps = traced.embed(images), []
        for i, step in enumerate(traced.steps):
            state = step(*state)
            maps.append(tracker.token_map(state, i))
    return maps
