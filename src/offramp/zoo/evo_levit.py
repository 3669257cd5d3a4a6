"""Evo-LeViT: LeViT with a class token that ranks the patches, and half of them waiting.

Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022, arXiv
2108.01390. Against LeViT: a class token, learned position tables instead of attention biases
(tokens have no fixed neighbours any more), and a learned trade-off per attention. LeViT's own
weights do not fit.
"""

from typing import Any, Literal

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.levit import LevitMlp, LinearNorm, NormLinear, Stem16
from torch import Tensor, nn

from offramp.chains.slow_fast import beginning, blend, everyone, mean_patch, rows, select
from offramp.chains.state import State

Grid = tuple[int, int]


class EvoAttention(nn.Module):
    """LeViT's attention without biases; values are ``ratio`` times as wide as keys.

    ``tradeoff`` is t's logit in G ← (1 − t)·G + t·a; t = ½ while ``learned`` is off.
    """

    def __init__(self, dim: int, out: int, key_dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.key_dim, self.ratio = heads, key_dim, ratio
        self.learned = True
        self.kv = LinearNorm(dim, heads * key_dim * (1 + ratio))
        self.q = LinearNorm(dim, heads * key_dim)
        # a residual branch starts at zero
        start = 0.0 if out == dim else 1.0
        self.proj = LinearNorm(heads * key_dim * ratio, out, bn_weight_init=start)
        self.act = nn.Hardswish()
        self.tradeoff = nn.Parameter(torch.zeros(()))

    @property
    def t(self) -> Tensor:
        return self.tradeoff.sigmoid() if self.learned else torch.full_like(self.tradeoff, 0.5)

    def forward(self, queries: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that ask (B, Q, C) and all (B, T, C) → (B, Q, out), and the class row (B, T).

        The row is the mean over heads of the first query's attention, in float32.
        """
        B, T = x.shape[:2]
        k, v = self.kv(x).view(B, T, self.heads, -1).tensor_split((self.key_dim,), -1)
        q = self.q(queries).view(B, queries.shape[1], self.heads, -1).transpose(1, 2)
        scores = q @ k.permute(0, 2, 3, 1) * self.key_dim**-0.5  # (B, H, Q, T)
        shares = scores.softmax(-1)
        y = (shares @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
        return self.proj(self.act(y)), shares[:, :, 0].float().mean(1)


class EvoBlock(nn.Module):
    """Attention and MLP on the slow tokens; selects first where ``n`` is given and it opens a run.

    Args:
        n: patches that go on; None where all do.
        opens: this block selects in stage-wise mode.
    """

    def __init__(
        self, dim: int, key_dim: int, heads: int, n: int | None, opens: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.n, self.opens, self.layered = n, opens, False
        self.attn = EvoAttention(dim, dim, key_dim, heads, 2)
        self.mlp = LevitMlp(dim, 2 * dim, act_layer=nn.Hardswish)
        self.drop_path = DropPath(drop_path)
        self.first = False

    def forward(self, *state: Tensor) -> State:
        if self.n is not None and (self.opens or self.layered):
            state = select(state, 1, self.n)
        x, rest, score, order, moved = state
        attended, row = self.attn(x, x)
        attended = self.drop_path(attended)
        fresh = row[:, 1 : 1 + score.shape[1] - rest.shape[1]]
        score = fresh if self.first else blend(score, fresh, self.attn.t)
        x = x + attended
        mlp = self.drop_path(self.mlp(x))
        if self.n is not None:
            moved = moved + attended[:, -1:] + mlp[:, -1:]
        return (x + mlp, rest, score, order, moved)


class EvoSubsample(nn.Module):
    """The attention that halves the grid: class token and every second patch ask all patches."""

    def __init__(self, dim: int, out: int, key_dim: int, grid: Grid, drop_path: float) -> None:
        super().__init__()
        self.grid = grid
        self.position = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, dim))
        self.attn = EvoAttention(dim, out, key_dim, dim // key_dim, 4)
        self.mlp = LevitMlp(out, 2 * out, act_layer=nn.Hardswish)
        self.drop_path = DropPath(drop_path)

    def forward(self, *state: Tensor) -> State:
        _, _, score, order, _ = state
        back = order.argsort(dim=1)
        patches, score = rows(everyone(state, 1), back), score.gather(1, back)  # in raster order
        x = torch.cat((state[0][:, :1], patches), 1) + self.position
        asking = torch.cat((x[:, :1], self._halve(x[:, 1:])), 1)
        x, row = self.attn(asking, x)
        mixed = blend(
            self._halve(score.unsqueeze(-1)).squeeze(-1),
            self._halve(row[:, 1:, None]).squeeze(-1),
            self.attn.t,
        )
        x = x + self.drop_path(self.mlp(x))
        begun = beginning(x, 1, fast=True)
        # as much score in all as before
        score = mixed * (score.sum(1, keepdim=True) / mixed.sum(1, keepdim=True))
        return (begun[0], begun[1], score, *begun[3:])

    def _halve(self, patches: Tensor) -> Tensor:
        """Every second row and column of patches (B, H·W, C)."""
        return patches.unflatten(1, self.grid)[:, ::2, ::2].flatten(1, 2)


class EvoLevit(nn.Module):
    """Evo-LeViT; the state between its steps is that of `offramp.chains.slow_fast`.

    Args:
        keep: share of the patches that go on; the first two blocks always work on all.
        learned: the trade-offs are learned, or all ½ (first two thirds of the published training).
        auxiliary: heads on the class token, for training: they keep its attention meaningful.
    """

    def __init__(
        self,
        img_size: int | Grid = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        embed_dim: tuple[int, ...] = (128, 256, 384),
        key_dim: int = 16,
        num_heads: tuple[int, ...] = (4, 6, 8),
        depth: tuple[int, ...] = (2, 3, 4),
        keep: float = 0.5,
        learned: bool = True,
        auxiliary: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size, self.in_chans, self.num_classes = size, in_chans, num_classes
        self.embed_dim, self.num_features, self.num_heads = embed_dim, embed_dim[-1], num_heads
        self.stem = Stem16(in_chans, embed_dim[0], act_layer=nn.Hardswish)
        grid = (-(-size[0] // 16), -(-size[1] // 16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim[0]))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, embed_dim[0]))
        steps: list[nn.Module] = []
        self.grids: list[Grid] = []
        for stage, dim in enumerate(embed_dim):
            if stage:
                steps.append(EvoSubsample(embed_dim[stage - 1], dim, key_dim, grid, drop_path_rate))
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
                self.grids.append(grid)
            patches = grid[0] * grid[1]
            n = int(patches * keep + 1e-9)
            spared = 0 if stage else 2
            for number in range(depth[stage]):
                slow = n if number >= spared and 0 < n < patches else None
                opens = number == spared
                steps.append(EvoBlock(dim, key_dim, num_heads[stage], slow, opens, drop_path_rate))
                self.grids.append(grid)
        self.steps = nn.ModuleList(steps)
        if isinstance(steps[0], EvoBlock):
            steps[0].first = True  # nothing to blend with yet
        self.widths = [
            dim for stage, dim in enumerate(embed_dim) for _ in range(depth[stage] + (stage > 0))
        ]
        self.head, self.head_dist = (NormLinear(embed_dim[-1], num_classes) for _ in range(2))
        self.head_cls, self.head_cls_dist = (
            NormLinear(embed_dim[-1], num_classes) if auxiliary else None for _ in range(2)
        )
        for table in (self.cls_token, self.pos_embed, *self._tables()):
            trunc_normal_(table, std=0.02)
        self.learn_tradeoffs(learned)

    def _tables(self) -> list[nn.Parameter]:
        return [step.position for step in self.steps if isinstance(step, EvoSubsample)]

    def select_by(self, selection: Literal["stage", "layer"]) -> None:
        """Select once per stage, or in every block as early in the published training."""
        for step in self.steps:
            if isinstance(step, EvoBlock):
                step.layered = selection == "layer"

    def learn_tradeoffs(self, learned: bool) -> None:
        """Learn the trade-offs, or take ½ for all of them."""
        for attention in self.modules():
            if isinstance(attention, EvoAttention):
                attention.learned = learned

    def embed(self, images: Tensor) -> State:
        """Images (B, 3, H, W) → the first state."""
        x = self.stem(images).flatten(2).transpose(1, 2)
        classes = self.cls_token.expand(x.shape[0], -1, -1)
        return beginning(torch.cat((classes, x), 1) + self.pos_embed, 1, fast=True)

    def finish(self, *state: Tensor) -> Tensor:
        """The last state → the mean of both classifiers of the mean patch."""
        mean = mean_patch(state, 1)
        return (self.head(mean) + self.head_dist(mean)) / 2

    def answers(self, *state: Tensor) -> list[Tensor]:
        """Logits of every head: mean patch, its distilled twin, and those of the class token."""
        mean, spoken = mean_patch(state, 1), state[0][:, 0]
        said = [self.head(mean), self.head_dist(mean)]
        if self.head_cls is not None and self.head_cls_dist is not None:
            said += [self.head_cls(spoken), self.head_cls_dist(spoken)]
        return said

    def forward(self, images: Tensor) -> Tensor:
        state = self.embed(images)
        for step in self.steps:
            state = step(*state)
        return self.finish(*state)


CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv1.linear",
    "classifier": ("head.linear", "head_dist.linear"),
    "paper_ids": "arXiv:2108.01390",
}
SIZES: dict[str, dict[str, Any]] = {
    "128s": {},
    "128": {"num_heads": (4, 8, 12), "depth": (4, 4, 4)},
    "192": {
        "embed_dim": (192, 288, 384),
        "key_dim": 32,
        "num_heads": (3, 5, 6),
        "depth": (4, 4, 4),
    },
    "256": {"embed_dim": (256, 384, 512), "key_dim": 32, "depth": (4, 4, 4)},
    "384": {
        "embed_dim": (384, 512, 768),
        "key_dim": 32,
        "num_heads": (6, 9, 12),
        "depth": (4, 4, 4),
    },
}
default_cfgs = generate_default_cfgs({f"evo_levit_{size}.untrained": CFG for size in SIZES})


def _create(size: str, pretrained: bool, given: dict[str, Any]) -> EvoLevit:
    options = SIZES[size] | given
    return build_model_with_cfg(EvoLevit, f"evo_levit_{size}", pretrained, **options)


@register_model
def evo_levit_128s(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-128S."""
    return _create("128s", pretrained, kwargs)


@register_model
def evo_levit_128(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-128."""
    return _create("128", pretrained, kwargs)


@register_model
def evo_levit_192(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-192."""
    return _create("192", pretrained, kwargs)


@register_model
def evo_levit_256(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-256."""
    return _create("256", pretrained, kwargs)


@register_model
def evo_levit_384(pretrained: bool = False, **kwargs: Any) -> EvoLevit:
    """Evo-LeViT-384."""
    return _create("384", pretrained, kwargs)
