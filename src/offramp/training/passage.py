"""One pass through a model that keeps the state after every step."""

from typing import NamedTuple

from torch import Tensor

from offramp.chains import State
from offramp.chains.reduced import ReducedChain, Reducer
from offramp.errors import OfframpError
from offramp.exits.exit import Carry
from offramp.model import MultiExitModel


class Passage(NamedTuple):
    """States after every step, and every exit's logits (B, C), the final one last."""

    states: list[State]
    said: list[Tensor]


def passage(model: MultiExitModel, images: Tensor) -> Passage:
    """Images (B, 3, H, W) through every step and every exit."""
    chain = model.chain
    heads = dict(zip(model.positions, model.heads, strict=True))
    state, carry = chain.embed(images), Carry()
    states: list[State] = []
    said: list[Tensor] = []
    for number, step in enumerate(chain.steps, 1):
        state = step(*state)
        states.append(state)
        if number in heads:
            outputs, carry = heads[number](chain.tokens(state, number - 1), carry)
            said.append(outputs[0])
    return Passage(states, [*said, chain.finish(*state)])


def reducer_of(model: MultiExitModel, kind: type[Reducer], recipe: str) -> ReducedChain:
    """The model's chain, if it carries the reducer that a recipe trains."""
    links = model.chain
    if not isinstance(links, ReducedChain) or not isinstance(links.reducer, kind):
        raise OfframpError(f"recipe {recipe} trains the reducer {recipe}: set model.reducer to it")
    return links
