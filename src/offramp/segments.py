"""Segments: the steps since the previous active exit, with that exit's head."""

from typing import NamedTuple

from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.state import State
from offramp.exits.exit import Outputs


class Segment(nn.Module):
    """A run of steps and the head behind it; tensors in, tensors out.

    The first segment takes images, every other the state the previous one returned. ``forward``
    gives ``(state, outputs)``; the last segment's state is empty.

    Attributes:
        exit_index: index of its exit among all exits of the model.
        start, stop: the steps it runs, ``chain.steps[start:stop]``.
    """

    def __init__(
        self, chain: Chain, start: int, stop: int, exit_index: int, head: nn.Module | None
    ) -> None:
        super().__init__()
        self.exit_index, self.start, self.stop = exit_index, start, stop
        self.chain, self.head = chain, head
        self._steps = chain.steps[start:stop]

    def body(self, *inputs: Tensor) -> State:
        """Images or state → the state before this segment's head."""
        if self.start == 0:
            state, carry = self.chain.embed(*inputs), inputs[:0]
        else:
            width = self.chain.schema_after(self.start - 1).chain_width
            state, carry = inputs[:width], inputs[width:]
        for step in self._steps:
            state = step(*state)
        return (*state, *carry)

    def read(self, *state: Tensor) -> tuple[State, NamedTuple]:
        """State before the head → state after it and what the exit says."""
        width = self.chain.schema_after(self.stop - 1).chain_width
        if self.head is None:
            return (), Outputs(self.chain.finish(*state[:width]))
        tokens = self.chain.tokens(state[:width], self.stop - 1)
        outputs, carry = self.head(tokens, state[width:])
        return (*state[:width], *carry), outputs

    def forward(self, *inputs: Tensor) -> tuple[State, NamedTuple]:
        return self.read(*self.body(*inputs))
