"""The Shuffle Transformer's block: attention in plain or shuffled windows.

Between blocks a map is (B, H, W, C). Inside, it is seen as (B, C, H, W) with its channels last in
memory: the view costs nothing, convolutions are fastest on it, and heads are cut out as runs.
"""

from functools import partial

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

ReLU6 = partial(nn.ReLU6, inplace=True)  # what it clips is four times as wide as the map


class WindowAttention(nn.Module):
    """Attention inside windows with a relative position bias; (B, C, H, W) → same.

    A map of H = w·R rows has R windows above each other. Plain, row y belongs to window ⌊y/w⌋ as
    its row y mod w. Shuffled, it belongs to window y mod R as its row ⌊y/R⌋: a window is a grid of
    stride R over the whole map. Columns likewise. The bias goes by the rows and columns inside a
    window, near or far apart.
    """

    relative_position_index: Tensor  # (w⁴,): entry of the table for every pair of tokens

    def __init__(self, dim: int, heads: int, window: int, *, shuffled: bool) -> None:
        super().__init__()
        self.num_heads, self.window, self.shuffled = heads, window, shuffled
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
        down, right = y[:, None] - y + window - 1, x[:, None] - x + window - 1
        index = (down * (2 * window - 1) + right).flatten()
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        w, h = self.window, self.num_heads
        rows, columns = x.shape[2] // w, x.shape[3] // w  # R, S
        qkv = self.qkv(x).unflatten(1, (3, h, -1))  # (B, 3, h, d, H, W)
        if self.shuffled:
            qkv = qkv.unflatten(5, (w, columns)).unflatten(4, (w, rows))
            qkv = qkv.permute(1, 0, 5, 7, 2, 4, 6, 3)  # (3, B, R, S, h, w, w, d)
        else:
            qkv = qkv.unflatten(5, (columns, w)).unflatten(4, (rows, w))
            qkv = qkv.permute(1, 0, 4, 6, 2, 5, 7, 3)
        q, k, v = qkv.flatten(5, 6).flatten(1, 3).unbind(0)  # (B·R·S, h, w², d)
        bias = self.relative_position_bias_table.t().index_select(1, self.relative_position_index)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.view(1, h, w * w, w * w))
        out = out.unflatten(2, (w, w)).unflatten(0, (-1, rows, columns))
        # (B, R, S, h, w, w, d) → (B, w, R, w, S, h, d) or (B, R, w, S, w, h, d)
        out = out.permute((0, 4, 1, 5, 2, 3, 6) if self.shuffled else (0, 1, 4, 2, 5, 3, 6))
        out = out.flatten(5, 6).flatten(3, 4).flatten(1, 2)  # (B, H, W, C)
        return self.proj(out.permute(0, 3, 1, 2))


class ShuffleBlock(nn.Module):
    """Window attention, a depthwise convolution between windows, an MLP; (B, H, W, C) → same.

    The convolution has no drop path.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: int = 7,
        shuffled: bool = False,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = WindowAttention(dim, heads, window, shuffled=shuffled)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.BatchNorm2d(dim)
        self.local = nn.Conv2d(dim, dim, window, padding=window // 2, groups=dim)
        self.norm3 = nn.BatchNorm2d(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = Mlp(dim, hidden, act_layer=ReLU6, drop=proj_drop, use_conv=True)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = x + self.local(self.norm2(x))
        x = x + self.drop_path2(self.mlp(self.norm3(x)))
        return x.permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """Halve height and width, double the channels; (B, H, W, C) → (B, H/2, W/2, 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.reduction = nn.Conv2d(dim, 2 * dim, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
