"""Layers of which only the leading tokens are read: the others' results are never computed.

Equal to the trained layers up to rounding. A ViT-EE at 197 tokens does a sixth of its work so.
"""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from offramp.exits.exit import linear_layer


class LeadingBlock(nn.Module):
    """A pre-norm block: x (B, n, D) → its first ``count`` tokens (B, count, D).

    The other tokens are looked at, but have no queries, projections and MLPs of their own.
    """

    def __init__(self, block: Any, count: int) -> None:
        super().__init__()
        self.count, self.heads = count, int(block.attn.num_heads)
        qkv = block.attn.qkv
        D = qkv.in_features
        self.query = linear_layer(qkv.weight[:D], qkv.bias[:D])
        self.key_value = linear_layer(qkv.weight[D:], qkv.bias[D:])
        self.norm1, self.proj = copy.deepcopy(block.norm1), copy.deepcopy(block.attn.proj)
        self.norm2, self.mlp = copy.deepcopy(block.norm2), copy.deepcopy(block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q = self.query(y[:, : self.count]).unflatten(2, (self.heads, -1)).transpose(1, 2)
        kv = self.key_value(y).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)  # (B, heads, n, D / heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x[:, : self.count] + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class LeadingMixer(nn.Module):
    """A mixer layer: x (B, n, D) → its first ``count`` tokens (B, count, D)."""

    def __init__(self, block: Any, count: int) -> None:
        super().__init__()
        self.count = count
        last = block.mlp_tokens.fc2
        self.hidden, self.act = copy.deepcopy(block.mlp_tokens.fc1), nn.GELU()
        self.mix = linear_layer(last.weight[:count], last.bias[:count])
        self.norm1, self.norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
        self.channels = copy.deepcopy(block.mlp_channels)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.norm1(x).transpose(1, 2)  # (B, D, n)
        mixed = self.mix(self.act(self.hidden(columns))).transpose(1, 2)  # (B, count, D)
        x = x[:, : self.count] + mixed
        return x + self.channels(self.norm2(x))


class LeadingResMLP(nn.Module):
    """A ResMLP layer: x (B, n, D) → its first ``count`` tokens (B, count, D)."""

    def __init__(self, block: Any, count: int) -> None:
        super().__init__()
        self.count = count
        mix = block.linear_tokens
        self.mix = linear_layer(mix.weight[:count], mix.bias[:count])
        self.norm1, self.norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
        self.channels = copy.deepcopy(block.mlp_channels)
        self.scale1, self.scale2 = copy.deepcopy(block.ls1), copy.deepcopy(block.ls2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)  # (B, count, D)
        x = x[:, : self.count] + self.scale1 * mixed
        return x + self.scale2 * self.channels(self.norm2(x))
