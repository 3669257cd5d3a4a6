"""How heads read tokens: pooled, as one sequence, as a map; and what they refuse."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError

Pool = Literal["auto", "class", "mean", "both"]
POOLS = ("auto", "class", "mean", "both")


def pooled(tokens: Tokens, pool: Pool) -> Tensor:
    """Class tokens (B, T, C); or the mean patch (B, 1, C) where asked or where there is none; or
    ``both``: the mean patch behind each class token (B, T, 2C)."""
    if pool == "mean" or tokens.class_tokens == 0:
        return tokens.mean
    if pool != "both":
        return tokens.classes
    return torch.cat([tokens.classes, tokens.mean.expand(-1, tokens.class_tokens, -1)], dim=2)


def pooled_shape(name: str, spec: TokenSpec, pool: Pool) -> tuple[int, int]:
    """Vectors and their width in what `pooled` gives; refuses what it cannot give."""
    check_choice(name, "pool", pool, POOLS)
    if pool == "both" and spec.class_tokens == 0:
        raise OfframpError(
            f"{name}: pool = 'both' joins class token and mean patch, but there is no class token "
            "here (use 'mean')"
        )
    vectors = 1 if pool == "mean" else max(spec.class_tokens, 1)
    return vectors, spec.width * (2 if pool == "both" else 1)


def sequence(tokens: Tokens, *, classes: bool = True) -> Tensor:
    """Class tokens and patches as one sequence (B, T + N, C); registers are left out."""
    if not classes or tokens.class_tokens == 0:
        return tokens.patches
    return torch.cat([tokens.classes, tokens.patches], dim=1)


def as_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (B, H·W, C) in raster order → (B, C, H, W), channels last in memory."""
    return patches.unflatten(1, grid).permute(0, 3, 1, 2)


def grid_of(name: str, spec: TokenSpec) -> tuple[int, int]:
    """The grid of the patches; refuses tokens without one, such as those a reducer has thinned."""
    if spec.grid is None:
        raise OfframpError(
            f"{name} needs tokens on a grid; these have none (use a head that needs none, such as "
            "linear or vit_ee)"
        )
    return spec.grid


def attention_heads(name: str, width: int, heads: int | None, backbone: int = 0) -> int:
    """How many attention heads: as asked, else as the backbone, else the largest divisor ≤ 8."""
    if heads is None:
        heads = backbone or next(h for h in range(8, 0, -1) if width % h == 0)
    if heads < 1 or width % heads:
        raise OfframpError(f"{name}: heads = {heads} does not divide the token width {width}")
    return heads


def check_choice(name: str, option: str, value: object, accepted: Sequence[str]) -> None:
    """Raise `OfframpError` unless ``value`` is one of the accepted words."""
    if value not in accepted:
        *most, last = (repr(word) for word in accepted)
        raise OfframpError(f"{name}: {option} = {value!r} (use {', '.join(most)} or {last})")
