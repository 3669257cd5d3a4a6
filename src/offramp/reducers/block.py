"""A ViT block taken apart: attention, the class token's row of it, and the MLP.

Fused attention returns no probabilities, and reducers only want the class token's: one row,
N·C multiply-accumulates beside the block's 12·N·C².
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Attended(NamedTuple):
    """What a block's attention gives.

    Shapes: ``branch`` (B, T, C), to be added to x; ``query``, ``key`` (B, H, T, d).
    """

    branch: Tensor
    query: Tensor
    key: Tensor


def attend(block: Any, x: Tensor, bias: Tensor | None = None) -> Attended:
    """Attention of a timm block, bit for bit as it computes it itself.

    Args:
        x: tokens (B, T, C), before the block's first norm.
        bias: added to the scores, broadcast to (B, H, T, T).
    """
    attn = block.attn
    query, key, value = heads(block, x)
    y = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=attn.attn_drop.p if attn.training else 0.0
    )
    return Attended(project(block, y), query, key)


def heads(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, d) of tokens before the block's first norm."""
    attn = block.attn
    B, T = x.shape[:2]
    qkv = attn.qkv(block.norm1(x)).reshape(B, T, 3, attn.num_heads, attn.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(query), attn.k_norm(key), value


def project(block: Any, y: Tensor) -> Tensor:
    """What the heads read (B, H, T, d) → the attention's residual branch (B, T, C)."""
    attn = block.attn
    y = attn.norm(y.transpose(1, 2).flatten(2))
    return block.drop_path1(block.ls1(attn.proj_drop(attn.proj(y))))


def class_row(said: Attended, bias: Tensor | None = None) -> Tensor:
    """Whom the class token attends to, in float32: (B, H, T), each row summing to 1."""
    scores = (said.query[:, :, :1] * said.query.shape[-1] ** -0.5) @ said.key.transpose(-2, -1)
    scores = scores.float() if bias is None else scores.float() + bias.float()
    return scores.softmax(-1).squeeze(2)


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """The MLP's residual branch (B, T, C)."""
    return block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def log_size(size: Tensor, like: Tensor) -> Tensor:
    """Proportional attention: a key that stands for s tokens counts s times, (B, 1, 1, T)."""
    return size.log().to(like.dtype)[:, None, None, :]
