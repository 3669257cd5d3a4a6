"""EViT: keep the tokens the class token attends to, fuse the rest into one.

Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", ICLR 2022, arXiv 2202.07800.
"""

import math

import torch
from torch import Tensor, nn

from offramp.chains.reduced import Reducer
from offramp.chains.slow_fast import rows
from offramp.chains.state import State
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError
from offramp.reducers.block import attend, class_row, feed_forward
from offramp.reducers.matching import follow
from offramp.reducers.reducer import block_numbers, register_reducer, share, thirds


@register_reducer("evit")
class EViT(Reducer):
    """EViT: three blocks keep the best-attended tokens and fuse the others into one.

    Between attention and MLP of those blocks tokens are ranked by the class token's attention,
    averaged over heads: k = ⌈keep·(T − 1)⌉ stay, in the order of their scores, and the others leave
    one token Σ aᵢxᵢ behind, weighted with the raw attention (so it shrinks), which competes like
    any token later. The state is ``(x,)`` and no parameter is new.

    Args:
        keep: keep rate κ.
        blocks: 1-based blocks that drop tokens; default 4, 7 and 10 of twelve.
        fuse: leave the fused token behind.
    """

    def __init__(
        self,
        chain: ViTChain,
        *,
        keep: float = 0.7,
        blocks: list[int] | None = None,
        fuse: bool = True,
    ) -> None:
        super().__init__(chain)
        needs_class_token("evit", self)
        self.blocks = block_numbers("evit: blocks", blocks or thirds(self.depth), self.depth)
        self.keep, self.fuse = share("evit: keep", keep), fuse
        self.rate = self.keep  # the recipe lowers it from 1 in training

    def kept(self, tokens: int) -> int:
        """How many of ``tokens`` behind the prefix stay."""
        return math.ceil(self.rate * tokens - 1e-9)  # 0.7·10 is a little more than 7

    def start(self, x: Tensor) -> State:
        return (x,)

    def step(self, i: int, block: nn.Module, *state: Tensor) -> State:
        x, *place = state
        said = attend(block, x)
        x = x + said.branch
        T, front = x.shape[1], self.prefix
        k = self.kept(T - front)
        if i in self.blocks and k < T - front:
            score = class_row(said).mean(1)[:, front:]  # (B, T − P)
            order = score.argsort(dim=1, descending=True)
            parts = [x[:, :front], rows(x, front + order[:, :k])]
            if self.fuse:
                rest = score.scatter(1, order[:, :k], 0.0).to(x.dtype)
                parts.append(rest.unsqueeze(1) @ x[:, front:])  # (B, 1, C)
            if place:
                at = torch.arange(front + k, device=x.device).expand(x.shape[0], -1)
                new = torch.full_like(order, front + k)  # the fused token, or gone
                new = new.scatter(1, order[:, :k], at[:, front:])
                left = front + k + self.fuse
                place = [follow(place[0], torch.cat((at[:, :front], new), 1), left)]
            x = torch.cat(parts, 1)
        return (x + feed_forward(block, x), *place)

    def intact(self, i: int) -> bool:
        return self.keep == 1 or not any(number <= i for number in self.blocks)


def needs_class_token(name: str, reducer: Reducer) -> None:
    """Raise `OfframpError` for a model whose tokens no class token ranks."""
    if reducer.spec.class_tokens == 0:
        raise OfframpError(f"{name} ranks tokens by the class token, and this model has none")
