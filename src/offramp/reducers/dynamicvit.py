"""DynamicViT: small predictors learn which tokens can go.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS
2021, arXiv 2106.02034.
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
from offramp.reducers.block import attend, feed_forward, heads, project
from offramp.reducers.matching import follow
from offramp.reducers.pooling import classify_sized, finish_sized
from offramp.reducers.reducer import block_numbers, register_reducer, share, thirds


class Predictor(nn.Module):
    """How likely each patch is to be kept, from itself and the mean of those still there.

    x (B, N, C), keep (B, N) → log-probabilities (B, N, 2) of keeping and dropping.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
        )

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = self.embed(x)
        local, other = x.tensor_split((x.shape[-1] // 2,), -1)
        weight = keep.to(x.dtype).unsqueeze(-1)
        mean = (other * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-6)
        return F.log_softmax(self.decide(torch.cat((local, mean.expand_as(other)), -1)), -1)


@register_reducer("dynamicvit")
class DynamicViT(Reducer):
    """DynamicViT: ahead of three blocks a learned predictor drops tokens for good.

    In training nothing is dropped: keep bits are drawn by straight-through Gumbel softmax and
    hidden tokens are masked out of attention, which costs the full time. In evaluation mode the
    ⌊N·keepˢ⌋ most probable patches are gathered. The state is ``(x, keep)``, keep (B, N) in
    float32: 1 where a patch is there.

    Args:
        keep: share of patches that survives each of the stages.
        blocks: 1-based blocks ahead of which patches are dropped; default 4, 7 and 10 of twelve.
    """

    names = ("keep",)

    def __init__(
        self, chain: ViTChain, *, keep: float = 0.7, blocks: list[int] | None = None
    ) -> None:
        super().__init__(chain)
        given = blocks or thirds(self.depth)
        self.blocks = block_numbers("dynamicvit: blocks", given, self.depth)
        self.keep = share("dynamicvit: keep", keep)
        self.rates = [self.keep ** (s + 1) for s in range(len(self.blocks))]
        self.kept = [int(self.patches * rate + 1e-9) for rate in self.rates]
        if not self.kept or self.kept[-1] < 1:
            raise OfframpError(f"dynamicvit: keep = {keep} leaves none of {self.patches} patches")
        self.predictors = nn.ModuleList(Predictor(self.spec.width) for _ in self.blocks)

    def start(self, x: Tensor) -> State:
        return (x, torch.ones_like(x[:, self.prefix :, 0], dtype=torch.float32))

    def step(self, i: int, block: nn.Module, *state: Tensor) -> State:
        x, keep, *place = state
        if i in self.blocks and self.keep < 1:
            choose = self._mask if self.training else self._drop
            x, keep, place = choose(self.blocks.index(i), x, keep, place)
        if self.training and i >= self.blocks[0]:
            x = x + masked_branch(block, x, self._size(keep))
        else:
            x = x + attend(block, x).branch
        return (x + feed_forward(block, x), keep, *place)

    def _mask(
        self, stage: int, x: Tensor, keep: Tensor, place: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Training: draw keep bits, through which gradients flow; what was hidden stays hidden."""
        said = self.predictors[stage](x[:, self.prefix :], keep)
        return x, F.gumbel_softmax(said.float(), hard=True)[..., 0] * keep, place

    def _drop(
        self, stage: int, x: Tensor, keep: Tensor, place: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Inference: gather the most probable patches, best first."""
        front, k = self.prefix, self.kept[stage]
        said = self.predictors[stage](x[:, front:], keep)[..., 0]
        best = said.argsort(dim=1, descending=True)[:, :k]  # (B, k)
        if place:
            at = torch.arange(front + k, device=x.device).expand(x.shape[0], -1)
            new = torch.full_like(said, front + k, dtype=torch.long).scatter(1, best, at[:, front:])
            place = [follow(place[0], torch.cat((at[:, :front], new), 1), front + k)]
        return torch.cat((x[:, :front], rows(x, front + best)), 1), keep[:, :k], place

    def finish(self, chain: Chain, *state: Tensor) -> Tensor:
        return finish_sized(chain, state[0], self._size(state[1]))

    def classify(self, chain: Chain, *state: Tensor) -> Tensor:
        return classify_sized(chain, state[0], self._size(state[1]))

    def _size(self, keep: Tensor) -> Tensor:
        return F.pad(keep, (self.prefix, 0), value=1.0)

    def intact(self, i: int) -> bool:
        return self.keep == 1 or i < self.blocks[0]

    def tokens(self, state: State, i: int) -> Tokens:
        view = super().tokens(state, i)
        size = None if self.intact(i) else state[1]
        return replace(view, size=size)


def masked_branch(block: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """Attention in which hidden tokens are seen by none but themselves.

    Weights exp(s_ij − max)·G_ij, with G the keys' keep bits and ones on the diagonal, smoothed by
    1e-6 so that gradients reach the bits of what is hidden.

    Args:
        x: tokens (B, T, C).
        keep: bits (B, T), the prefix included.
    """
    query, key, value = heads(block, x)
    T = x.shape[1]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, H, T, T)
    own = torch.eye(T, device=x.device, dtype=keep.dtype)
    open_to = keep[:, None, :] * (1 - own) + own  # (B, T, T)
    scores = scores.float()
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * open_to.unsqueeze(1)
    eps = 1e-6
    shares = (weights + eps / T) / (weights.sum(-1, keepdim=True) + eps)
    return project(block, shares.to(value.dtype) @ value)
