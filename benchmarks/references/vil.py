"""ViL's attention the straightforward way: nine rolls of the chunk grid, one product for each."""

import copy

import torch
from torch import Tensor, nn

from offramp.zoo.vil import VisionLongformer
from offramp.zoo.vil_attention import FullAttention, WindowAttention


class RolledWindows(nn.Module):
    """Sliding windows as the paper draws them; the weights of a `WindowAttention`, no biases."""

    def __init__(self, fast: WindowAttention) -> None:
        super().__init__()
        if fast.rpb or fast.mask != "chunks" or not fast.share_global:
            raise ValueError("written for shared weights, whole chunks and no relative bias")
        self.query, self.kv, self.proj = fast.query, fast.kv, fast.proj
        self.num_heads, self.num_globals = fast.num_heads, fast.num_globals
        self.grid, self.window = fast.grid, fast.window

    def forward(self, x: Tensor) -> Tensor:
        B, _, C = x.shape
        (H, W), w, g, h = self.grid, self.window, self.num_globals, self.num_heads
        m = C // h
        q = m**-0.5 * self.query(x[:, g:])
        k, v = self.kv(x).view(B, -1, 2, h, m).permute(2, 0, 3, 1, 4)  # (B, h, g + H·W, m)
        below, right = -H % w, -W % w
        rows, columns = (H + below) // w, (W + right) // w

        def cut(t: Tensor) -> Tensor:
            """Patches (B, h, H·W, m) → chunks (B, h, rows, columns, w², m)."""
            t = nn.functional.pad(t.reshape(B, h, H, W, m), (0, 0, 0, right, 0, below))
            return (
                t.view(B, h, rows, w, columns, w, m)
                .transpose(3, 4)
                .reshape(B, h, rows, columns, w * w, m)
            )

        q = cut(q.view(B, -1, h, m).transpose(1, 2))
        k_chunks, v_chunks = cut(k[:, :, g:]), cut(v[:, :, g:])
        inside = nn.functional.pad(x.new_ones(H, W), (0, right, 0, below)).bool()
        inside = inside.view(rows, w, columns, w).transpose(1, 2).reshape(rows, columns, w * w)
        shifts = [(-a, -b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        scores = []
        for a, b in shifts:
            rolled = k_chunks.roll((a, b), (2, 3))
            score = torch.einsum("bhijqm,bhijkm->bhijqk", q, rolled)
            valid = inside.roll((a, b), (0, 1))
            row, column = torch.arange(rows)[:, None] - a, torch.arange(columns) - b
            valid = (
                valid & ((row >= 0) & (row < rows) & (column >= 0) & (column < columns))[..., None]
            )
            scores.append(score.masked_fill(~valid[:, :, None], -torch.inf))
        first = torch.einsum("bhijqm,bhgm->bhijqg", q, k[:, :, :g])
        weights = torch.cat([first, *scores], -1).softmax(-1)
        out = torch.einsum("bhijqg,bhgm->bhijqm", weights[..., :g], v[:, :, :g])
        for (a, b), part in zip(shifts, weights[..., g:].split(w * w, -1), strict=True):
            rolled = v_chunks.roll((a, b), (2, 3))
            out = out + torch.einsum("bhijqk,bhijkm->bhijqm", part, rolled)
        out = (
            out.view(B, h, rows, columns, w, w, m)
            .transpose(3, 4)
            .reshape(B, h, rows * w, columns * w, m)
        )
        out = out[:, :, :H, :W].reshape(B, h, H * W, m)
        if g:
            q_first = m**-0.5 * self.query(x[:, :g]).view(B, g, h, m).transpose(1, 2)
            out = torch.cat([(q_first @ k.mT).softmax(-1) @ v, out], 2)
        return self.proj(out.transpose(1, 2).reshape(B, -1, C))


class PlainAttention(nn.Module):
    """Full attention as two products and a softmax; the weights of a `FullAttention`."""

    def __init__(self, fast: FullAttention) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = fast.qkv, fast.proj, fast.num_heads

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        m = C // self.num_heads
        q, k, v = self.qkv(x).view(B, T, 3, self.num_heads, m).permute(2, 0, 3, 1, 4)
        a = (m**-0.5 * q @ k.mT).softmax(-1)
        return self.proj((a @ v).transpose(1, 2).reshape(B, T, C))


class DenseWindows(nn.Module):
    """Full attention with the weights of a `WindowAttention`: what the windows save."""

    def __init__(self, fast: WindowAttention) -> None:
        super().__init__()
        self.query, self.kv, self.proj = fast.query, fast.kv, fast.proj
        self.num_heads = fast.num_heads

    def forward(self, x: Tensor) -> Tensor:
        heads = (self.num_heads, -1)
        q = self.query(x).unflatten(2, heads).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


def reference(model: VisionLongformer) -> nn.Module:
    """The same network, attention written the obvious way."""
    return _with(model, RolledWindows, PlainAttention)


def dense(model: VisionLongformer) -> nn.Module:
    """A network that reads the whole map where ``model`` slides windows over it."""
    return _with(model, DenseWindows, None)


def _with(
    model: VisionLongformer, sliding: type[nn.Module], full: type[nn.Module] | None
) -> nn.Module:
    model = copy.deepcopy(model)
    for stage in model.stages:
        for block in stage.blocks:
            if isinstance(block.attn, WindowAttention):
                block.attn = sliding(block.attn)
            elif full is not None:
                block.attn = full(block.attn)
    return model
