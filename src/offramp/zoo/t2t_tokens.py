"""Tokens-to-token: from an image to tokens by overlapping windows and small attention layers.

A window is read as (row, column, channel): maps hold their channels last, so its rows are runs of
memory. Released weights read (channel, row, column); `convert` in ``t2t.py`` reorders them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import Mlp, to_2tuple
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.errors import OfframpError, suggest

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding; stride 16 in all
STRIDE = 16
PERFORMER_DROP = 0.1
EPS = 1e-8


def soft_split(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Overlapping windows of a map; (B, H, W, C) → (B, H', W', kernel²·C)."""
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    x = x.unfold(1, kernel, stride).unfold(2, kernel, stride)  # (B, H', W', C, row, column)
    return x.permute(0, 1, 2, 4, 5, 3).flatten(3)


class Performer(nn.Module):
    """Attention in linear time by positive random features; (B, N, C) → (B, N, D).

    φ(z) = exp(W z − |z|²/2)/√m replaces the softmax (arXiv:2009.14794): the answer is
    φ(q) (φ(k)ᵀ v) / (φ(q)·Σ φ(k) + ε). The projection W (m, D) is drawn once and never trained.
    The value itself is the skip connection, because widths differ.
    """

    w: nn.Parameter

    def __init__(self, in_dim: int, dim: int, drop: float = PERFORMER_DROP, **dd: Any) -> None:
        super().__init__()
        self.kqv = nn.Linear(in_dim, 3 * dim, **dd)  # in this order
        self.proj = nn.Linear(dim, dim, **dd)
        self.drop = nn.Dropout(drop)
        self.w = nn.Parameter(torch.empty(dim // 2, dim, **dd), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W: m orthogonal rows of length √m."""
        nn.init.orthogonal_(self.w, gain=math.sqrt(len(self.w)))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(x).chunk(3, dim=-1)
        k, q = self._features(k), self._features(q)  # (B, N, m)
        sums = q @ k.sum(1).unsqueeze(-1)  # (B, N, 1)
        out = q @ (k.transpose(1, 2) @ v) / (sums + EPS)
        return v + self.drop(self.proj(out))

    def _features(self, z: Tensor) -> Tensor:
        """φ, with 1/√m as −ln m / 2 in the exponent."""
        twice = z.square().sum(-1, keepdim=True) + math.log(len(self.w))
        # detached: no gradient even where a training has switched on every parameter
        return torch.add(F.linear(z, self.w.detach()), twice, alpha=-0.5).exp()


class SoftmaxAttention(nn.Module):
    """One head of plain attention with the value as skip connection; (B, N, C) → (B, N, D).

    Scores are scaled by C^-0.5, the input's width, as in the released weights.
    """

    def __init__(self, in_dim: int, dim: int, drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, N, D)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return (v + self.drop(self.proj(out))).squeeze(1)


TOKEN_LAYERS: dict[str, tuple[Callable[..., nn.Module], float]] = {
    "performer": (Performer, PERFORMER_DROP),
    "transformer": (SoftmaxAttention, 0.0),
}


class TokenLayer(nn.Module):
    """Attention that narrows windows to tokens, then an MLP; (B, N, C) → (B, N, D)."""

    def __init__(self, kind: str, in_dim: int, dim: int, drop: float | None, **dd: Any) -> None:
        super().__init__()
        if kind not in TOKEN_LAYERS:
            raise OfframpError(f"token_layer: {suggest('token layer', kind, TOKEN_LAYERS)}")
        attention, usual = TOKEN_LAYERS[kind]
        drop = usual if drop is None else drop
        self.norm1 = nn.LayerNorm(in_dim, **dd)
        self.attn = attention(in_dim, dim, drop, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, dim, drop=(0.0, drop), **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """The embedding of T2T-ViT, with the face of timm's PatchEmbed; (B, 3, H, W) → (B, N, dim).

    Three soft splits with a token layer behind the first two and a linear one behind the last; one
    token stands for 16 × 16 pixels.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = STRIDE,
        in_chans: int = 3,
        embed_dim: int = 256,
        token_dim: int = 64,
        token_layer: str = "performer",
        drop: float | None = None,
        device: Any = None,
        dtype: Any = None,
        **_: Any,  # what timm's VisionTransformer says to patches that are one convolution
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.set_input_size(img_size, patch_size)
        first, second, third = (split[0] for split in SPLITS)
        self.layers = nn.Sequential(
            TokenLayer(token_layer, first**2 * in_chans, token_dim, drop, **dd),
            TokenLayer(token_layer, second**2 * token_dim, token_dim, drop, **dd),
        )
        self.project = nn.Linear(third**2 * token_dim, embed_dim, **dd)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Bind to images of another size; the patch size stays 16."""
        if patch_size is not None and to_2tuple(patch_size) != (STRIDE, STRIDE):
            raise OfframpError(f"patch_size = {patch_size}, but tokens-to-token has {STRIDE}")
        if img_size is not None:
            self.patch_size = (STRIDE, STRIDE)
            self.img_size: tuple[int, int] = to_2tuple(img_size)
            self.grid_size = self.dynamic_feat_size(self.img_size)
            self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token."""
        return STRIDE if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of an image (H, W)."""
        rows, columns = img_size
        for kernel, stride, padding in SPLITS:
            rows = (rows + 2 * padding - kernel) // stride + 1
            columns = (columns + 2 * padding - kernel) // stride + 1
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.img_size:
            raise OfframpError(
                f"images of {tuple(x.shape[-2:])} pixels, but this model was built for "
                f"{self.img_size} (build it with img_size=… or call set_input_size)"
            )
        x = x.permute(0, 2, 3, 1)
        for layer, split in zip(self.layers, SPLITS, strict=False):
            windows = soft_split(x, *split)
            x = layer(windows.flatten(1, 2)).unflatten(1, windows.shape[1:3])
        return self.project(soft_split(x, *SPLITS[-1]).flatten(1, 2))
