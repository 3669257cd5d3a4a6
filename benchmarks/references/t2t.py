"""T2T-ViT written the plain way: ``unfold`` between transpositions, attention spelled out.

`reference` takes the weights of a model of ``offramp.zoo.t2t``. Tests compare the two, and
benchmarks time one against the other.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Performer(nn.Module):
    """Linear attention by the features φ(z) = exp(W z − |z|²/2)/√m, v as skip connection."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.w = nn.Parameter(torch.zeros(dim // 2, dim))

    def phi(self, z: Tensor) -> Tensor:
        half = (z * z).sum(dim=-1, keepdim=True) / 2
        return torch.exp(z @ self.w.t() - half) / self.w.shape[0] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = torch.split(self.kqv(x), self.proj.in_features, dim=-1)
        k, q = self.phi(k), self.phi(q)
        sums = torch.einsum("bnm,bm->bn", q, k.sum(dim=1)).unsqueeze(-1)
        out = torch.einsum("bnm,bmd->bnd", q, torch.einsum("bnm,bnd->bmd", k, v))
        return v + self.proj(out / (sums + 1e-8))


class SoftmaxAttention(nn.Module):
    """One head over windows, scaled by the width of its input, v as skip connection."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return v + self.proj(attention @ v)


class TokenLayer(nn.Module):
    def __init__(self, kind: type[nn.Module], in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = kind(in_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    def __init__(self, kind: type[nn.Module], in_chans: int, token_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [TokenLayer(kind, 49 * in_chans, token_dim), TokenLayer(kind, 9 * token_dim, token_dim)]
        )
        self.project = nn.Linear(9 * token_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.layers[0], x, kernel=7, stride=4, padding=2)
        x = self.tokens(self.layers[1], x, kernel=3, stride=2, padding=1)
        windows = F.unfold(x, kernel_size=3, stride=2, padding=1)
        return self.project(windows.transpose(1, 2))

    @staticmethod
    def tokens(layer: nn.Module, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        height = (x.shape[2] + 2 * padding - kernel) // stride + 1
        windows = F.unfold(x, kernel_size=kernel, stride=stride, padding=padding)
        y = layer(windows.transpose(1, 2)).transpose(1, 2)  # (B, D, N)
        return y.reshape(y.shape[0], y.shape[1], height, -1)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class T2T(nn.Module):
    """The whole network without dropout and drop path; images (B, 3, H, W) → logits."""

    def __init__(
        self, patch_embed: nn.Module, dim: int, heads: int, hidden: int, depth: int,
        tokens: int, num_classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def reference(model: Any) -> nn.Module:
    """The plain twin of a ``T2TViT`` that reads its class token, with its weights, in eval mode."""
    embed, block = model.patch_embed, model.blocks[0]
    kind = Performer if hasattr(embed.layers[0].attn, "w") else SoftmaxAttention
    plain = T2T(
        TokensToToken(kind, embed.in_chans, embed.layers[0].attn.proj.in_features, model.embed_dim),
        dim=model.embed_dim,
        heads=block.attn.num_heads,
        hidden=block.mlp.fc1.out_features,
        depth=len(model.blocks),
        tokens=embed.num_patches,
        num_classes=model.num_classes,
    )
    plain.load_state_dict({n: as_unfolded(n, t) for n, t in model.state_dict().items()})
    return plain.eval()


def as_unfolded(name: str, tensor: Tensor) -> Tensor:
    """Weights that read windows as (row, column, channel), in the order of ``unfold``."""
    reads = (".norm1.weight", ".norm1.bias", ".kqv.weight", ".qkv.weight", ".project.weight")
    if not name.startswith("patch_embed.") or not name.endswith(reads):
        return tensor
    kernel = 7 if ".layers.0." in name else 3
    windows = tensor.reshape(*tensor.shape[:-1], kernel, kernel, -1)
    return windows.movedim(-1, -3).reshape(tensor.shape)
