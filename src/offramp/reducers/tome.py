"""ToMe: merge the most similar tokens, in every block, without training.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461. Written from the
paper's description; its released code is under a non-commercial licence and was not used.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.reduced import Reducer
from offramp.chains.slow_fast import rows
from offramp.chains.state import State, Tokens, TokenSpec
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError
from offramp.reducers.block import attend, feed_forward, log_size
from offramp.reducers.matching import (
    bipartite_soft_matching,
    destinations,
    follow,
    merge,
    room,
)
from offramp.reducers.pooling import classify_sized, finish_sized
from offramp.reducers.reducer import per_block, register_reducer


@register_reducer("tome")
class ToMe(Reducer):
    """ToMe: r tokens merge into their nearest neighbour in every block; needs no training.

    Matching reads the keys, averaged over heads, and merging stands between attention and MLP. A
    token that stands for s patches counts s times as a key (proportional attention). The state is
    ``(x, size)``, size (B, T) in float32.

    Args:
        r: tokens merged per block, or a list with one number per block (missing ones are 0).
        slope: for a single r, a schedule that falls or rises linearly over the blocks with mean
            r, from r·(1 − slope) to r·(1 + slope): −1 falls from 2r to 0.
        proportional: proportional attention; off for models pretrained as masked autoencoders.
        restore: keep where every patch went, so that heads which need a map get one: each patch
            reads the token it was merged into.
    """

    names = ("size",)

    @classmethod
    def strengths(cls, chain: Chain) -> dict[str, list[float]]:
        most = chain.token_spec(0).patches // len(chain)  # more would use up the tokens early
        return {"r": sorted({round(most * part / 8) for part in range(9)})}

    def __init__(
        self,
        chain: ViTChain,
        *,
        r: int | list[int] = 8,
        slope: float = 0.0,
        proportional: bool = True,
        restore: bool = False,
    ) -> None:
        super().__init__(chain)
        wanted = schedule(r, slope, self.depth)
        tokens, self.merged = self.prefix + self.patches, []
        for number in wanted:
            self.merged.append(min(number, room(tokens, self.prefix)))
            tokens -= self.merged[-1]
        self.proportional, self.restore = proportional, restore
        self.tracking = restore

    def start(self, x: Tensor) -> State:
        return (x, torch.ones_like(x[..., 0], dtype=torch.float32))

    def step(self, i: int, block: nn.Module, *state: Tensor) -> State:
        x, size, *place = state
        weighs = self.proportional and not self.intact(i - 1)
        said = attend(block, x, log_size(size, x) if weighs else None)
        x = x + said.branch
        if self.merged[i]:
            found = bipartite_soft_matching(said.key.mean(1), self.merged[i], self.prefix)
            if place:
                where = destinations(found, x.shape[1], self.prefix)
                place = [follow(place[0], where, x.shape[1] - self.merged[i])]
            x, size = merge(x, size, found, self.prefix)
        return (x + feed_forward(block, x), size, *place)

    def finish(self, chain: Chain, *state: Tensor) -> Tensor:
        return finish_sized(chain, state[0], state[1])

    def classify(self, chain: Chain, *state: Tensor) -> Tensor:
        return classify_sized(chain, state[0], state[1])

    def intact(self, i: int) -> bool:
        return not any(self.merged[: i + 1])

    def tokens(self, state: State, i: int) -> Tokens:
        x, size, *place = state
        view = super().tokens(state, i)
        if self.intact(i):
            return view
        if self.restore:
            return replace(view, patches=rows(x, place[0]))
        return replace(view, size=size[:, self.prefix :])

    def token_spec(self, i: int) -> TokenSpec:
        return self.spec if self.restore else super().token_spec(i)


def schedule(r: Any, slope: float, depth: int) -> list[int]:
    """Tokens to merge in each block.

    Raises:
        OfframpError: for negative numbers, or a slope beside a list.
    """
    numbers = per_block(r, depth, "tome: r")
    if isinstance(r, int) and slope:
        if not -1 <= slope <= 1:
            raise OfframpError(f"tome: slope = {slope}, but it lies in −1…1")
        first = int(r * (1 - slope))
        step = (2 * r - 2 * first) / max(depth - 1, 1)
        numbers = [int(first + step * i) for i in range(depth)]
    elif slope:
        raise OfframpError("tome: slope goes with a single r, not with a list")
    if any(not isinstance(number, int) or number < 0 for number in numbers):
        raise OfframpError(f"tome: r = {r}, but a block merges a whole number of tokens, 0 or more")
    return numbers
