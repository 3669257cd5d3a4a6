"""Shapes of a chain's states, found on the meta device: no arithmetic, no memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from offramp.chains.chain import Chain
from offramp.errors import OfframpError


class _Walk(nn.Module):
    """A chain as a module that says how its states look, the embedding's first."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, images: Tensor) -> list[tuple[torch.Size, ...]]:
        state = self.chain.embed(images)
        shapes = [tuple(x.shape[1:] for x in state)]
        for step in self.chain.steps:
            state = step(*state)
            shapes.append(tuple(x.shape[1:] for x in state))
        return shapes


def state_shapes(chain: Chain) -> list[tuple[torch.Size, ...]]:
    """Shapes, without the batch, of the state after the embedding and after each step.

    Raises:
        OfframpError: when the network cannot take images of the chain's size.
    """
    walk = _Walk(chain)
    weights = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*walk.named_parameters(), *walk.named_buffers()]
    }
    # two images: in training mode a BatchNorm refuses one image whose map is a single pixel
    images = torch.empty(2, chain.in_chans, *chain.image_size, device="meta")
    with torch.no_grad(), size_refusals(chain):
        return functional_call(walk, weights, (images,))


@contextmanager
def size_refusals(chain: Chain) -> Iterator[None]:
    """Turn what a network says about images it cannot take into `OfframpError`."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0] or "its windows do not fit"
        raise OfframpError(
            f"{type(chain.backbone).__name__} cannot take images of {chain.image_size} ({first})"
        ) from error
