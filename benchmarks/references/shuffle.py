"""Shuffle Transformer written the plain way: NCHW maps, 1×1 convolutions, attention spelled out.

`reference` takes the weights of a model of ``offramp.zoo.shuffle``. Tests compare the two, and
benchmarks time one against the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention in plain or shuffled windows; (B, C, H, W) → same."""

    def __init__(self, dim: int, heads: int, window: int, shuffled: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shuffled = heads, window, shuffled
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        place = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        )
        place = place.flatten(1)  # (2, w²)
        offset = place[:, :, None] - place[:, None, :] + window - 1
        index = offset[0] * (2 * window - 1) + offset[1]
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        w, h, d = self.window, self.heads, dim // self.heads
        rows, columns = height // w, width // w
        qkv = self.qkv(x)
        if self.shuffled:
            qkv = qkv.view(batch, 3, h, d, w, rows, w, columns)
            qkv = qkv.permute(1, 0, 5, 7, 2, 4, 6, 3)  # (3, B, R, S, h, w, w, d)
        else:
            qkv = qkv.view(batch, 3, h, d, rows, w, columns, w)
            qkv = qkv.permute(1, 0, 4, 6, 2, 5, 7, 3)
        q, k, v = qkv.reshape(3, batch * rows * columns, h, w * w, d)
        attention = (q * d**-0.5) @ k.transpose(-2, -1)
        attention = attention + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        out = attention.softmax(-1) @ v
        out = out.view(batch, rows, columns, h, w, w, d)
        if self.shuffled:
            out = out.permute(0, 3, 6, 4, 1, 5, 2)  # (B, h, d, w, R, w, S)
        else:
            out = out.permute(0, 3, 6, 1, 4, 2, 5)  # (B, h, d, R, w, S, w)
        return self.proj(out.reshape(batch, dim, height, width))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.ReLU6()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shuffled: bool, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = Attention(dim, heads, window, shuffled)
        self.norm2 = nn.BatchNorm2d(dim)
        self.local = nn.Conv2d(dim, dim, window, padding=window // 2, groups=dim)
        self.norm3 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.local(self.norm2(x))
        return x + self.mlp(self.norm3(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.reduction = nn.Conv2d(dim, 2 * dim, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x))


class Shuffle(nn.Module):
    """The whole network without dropout and drop path; images (B, 3, H, W) → logits."""

    def __init__(
        self, in_chans: int, dims: Sequence[int], heads: Sequence[int], depths: Sequence[int],
        window: int, mlp_ratio: float, num_classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.ModuleDict(
            {
                "conv1": nn.Sequential(
                    nn.Conv2d(in_chans, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU6()
                ),
                "conv2": nn.Sequential(
                    nn.Conv2d(32, dims[0], 3, 2, 1), nn.BatchNorm2d(dims[0]), nn.ReLU6()
                ),
                "conv3": nn.Conv2d(dims[0], dims[0], 1),
            }
        )
        self.stages = nn.ModuleList()
        for s, (dim, number, depth) in enumerate(zip(dims, heads, depths, strict=True)):
            parts: dict[str, nn.Module] = {"downsample": PatchMerging(dims[s - 1])} if s else {}
            parts["blocks"] = nn.Sequential(
                *(
                    Block(dim, number, window, i % 2 == 1, int(dim * mlp_ratio))
                    for i in range(depth)
                )
            )
            self.stages.append(nn.ModuleDict(parts))
        self.head = nn.ModuleDict({"fc": nn.Linear(dims[-1], num_classes)})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.stem.values():
            x = part(x)
        for stage in self.stages:
            for part in stage.values():  # type: ignore[operator]
                x = part(x)
        return self.head["fc"](x.mean((2, 3)))


def reference(model: Any) -> nn.Module:
    """The plain twin of a ``ShuffleTransformer``, with its weights, in eval mode."""
    blocks = [list(stage.blocks) for stage in model.stages]
    first = blocks[0][0]
    dims = [stage[0].attn.proj.in_channels for stage in blocks]
    plain = Shuffle(
        in_chans=model.in_chans,
        dims=dims,
        heads=[stage[0].attn.num_heads for stage in blocks],
        depths=[len(stage) for stage in blocks],
        window=first.attn.window,
        mlp_ratio=first.mlp.fc1.out_channels / dims[0],
        num_classes=model.num_classes,
    )
    plain.load_state_dict(model.state_dict())
    return plain.eval()
