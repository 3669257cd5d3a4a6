"""DiffRate: prune, then merge, by a fixed schedule of token counts; without training.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV
2023, arXiv 2305.17997. The schedules its search found are used; the search is not part of this.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.chain import Chain
from offramp.chains.reduced import Reducer
from offramp.chains.slow_fast import rows
from offramp.chains.state import State, Tokens
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError
from offramp.reducers.block import attend, class_row, feed_forward, log_size
from offramp.reducers.evit import needs_class_token
from offramp.reducers.matching import follow
from offramp.reducers.pooling import classify_sized, finish_sized
from offramp.reducers.reducer import register_reducer

# DeiT-S at 2.9 GMACs: tokens left after pruning and after merging in each block, class token in
PRUNED = [197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3]
MERGED = [197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3]


@register_reducer("diffrate")
class DiffRate(Reducer):
    """DiffRate: tokens are pruned and merged to fixed counts per block; needs no training.

    After each attention tokens are sorted by the class token's attention, averaged over heads; the
    tail is pruned, and what is still too many joins the most similar kept token (cosine of x) in a
    plain mean. A merged token adds its size times the similarity, and attention is proportional to
    size. The state is ``(x, size)``.

    Args:
        prune, merge: tokens left after pruning and after merging, one number per block, prefix
            included. Default: the published schedule of DeiT-S at 2.9 GMACs, stretched to this
            model's depth and number of tokens.
    """

    names = ("size",)

    @classmethod
    def strengths(cls, chain: Chain) -> dict[str, list[float]]:
        return {}  # two schedules

    def __init__(
        self, chain: ViTChain, *, prune: list[int] | None = None, merge: list[int] | None = None
    ) -> None:
        super().__init__(chain)
        needs_class_token("diffrate", self)
        if (prune is None) != (merge is None):
            raise OfframpError("diffrate: prune and merge go together, one number per block each")
        tokens, least = self.prefix + self.patches, self.prefix + 1
        self.pruned, self.left = prune or [], merge or []
        if prune is None:
            self.pruned, self.left = stretched(self.depth, tokens, least)
        if not len(self.pruned) == len(self.left) == self.depth:
            raise OfframpError(
                f"diffrate: prune and merge need {self.depth} numbers, one per block"
            )
        before = tokens
        for i, (p, m) in enumerate(zip(self.pruned, self.left, strict=True), 1):
            if not least <= m <= p <= before:
                raise OfframpError(
                    f"diffrate: block {i} has {before} tokens, so {before} ≥ prune ≥ merge ≥ "
                    f"{least} must hold, but prune = {p} and merge = {m}"
                )
            before = m

    def start(self, x: Tensor) -> State:
        return (x, torch.ones_like(x[..., 0], dtype=torch.float32))

    def step(self, i: int, block: nn.Module, *state: Tensor) -> State:
        x, size, *place = state
        bias = None if self.intact(i - 1) else log_size(size, x)
        said = attend(block, x, bias)
        x = x + said.branch
        T, front, p, m = x.shape[1], self.prefix, self.pruned[i], self.left[i]
        if m < T:
            score = class_row(said, bias).mean(1)[:, front:]
            order = score.argsort(dim=1, descending=True)[:, : p - front] + front
            at = torch.arange(T, device=x.device).expand(x.shape[0], -1)
            order = torch.cat((at[:, :front], order), 1)  # (B, p), best attended first
            sizes = size.gather(1, order)
            kept, rest = rows(x, order).tensor_split((m,), 1)
            new = at[:, :p]
            if m < p:
                kept, grown, partner = absorb(kept, rest, sizes[:, m:], front)
                size, new = sizes[:, :m] + grown, torch.cat((new[:, :m], partner), 1)
            else:
                size = sizes
            x = kept
            if place:
                where = torch.full_like(at, m).scatter(1, order, new)
                place = [follow(place[0], where, m)]
        return (x + feed_forward(block, x), size, *place)

    def finish(self, chain: Chain, *state: Tensor) -> Tensor:
        return finish_sized(chain, state[0], state[1])

    def classify(self, chain: Chain, *state: Tensor) -> Tensor:
        return classify_sized(chain, state[0], state[1])

    def intact(self, i: int) -> bool:
        return i < 0 or self.left[i] == self.prefix + self.patches

    def tokens(self, state: State, i: int) -> Tokens:
        view = super().tokens(state, i)
        size = None if self.intact(i) else state[1][:, self.prefix :]
        return replace(view, size=size)


def absorb(kept: Tensor, rest: Tensor, sizes: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each kept token with those of the rest most like it.

    Args:
        kept, rest: (B, m, C) and (B, q, C); the prefix stands first among the kept, and apart.
        sizes: of the rest, (B, q).

    Returns:
        the kept tokens, what each grew by (B, m), and whom each of the rest joined (B, q).
    """
    with torch.no_grad():
        unit = F.normalize(kept[:, prefix:].float(), dim=-1)
        likeness = F.normalize(rest.float(), dim=-1) @ unit.transpose(1, 2)  # (B, q, m − P)
        best, partner = likeness.max(-1)
        partner = partner + prefix
        ranks = torch.arange(kept.shape[1], device=kept.device).unsqueeze(1)
        joins = (partner.unsqueeze(1) == ranks).float()  # (B, m, q)
    grown = (joins * (sizes * best.clamp(min=0)).unsqueeze(1)).sum(-1)
    share = 1 / (1 + joins.sum(-1, keepdim=True))
    merged = kept * share.to(kept.dtype) + (joins * share).to(kept.dtype) @ rest
    return merged, grown, partner


def stretched(depth: int, tokens: int, least: int) -> tuple[list[int], list[int]]:
    """The published schedule for another depth and number of tokens, never rising."""
    pruned, left, before = [], [], tokens
    for i in range(depth):
        at = max(0, (i + 1) * len(PRUNED) // depth - 1)
        p, m = (max(least, round(n[at] * tokens / PRUNED[0])) for n in (PRUNED, MERGED))
        pruned.append(min(p, before))
        left.append(min(m, pruned[-1]))
        before = left[-1]
    return pruned, left
