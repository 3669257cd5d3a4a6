"""One level of ViL's pyramid: patch embedding with global tokens, then blocks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import checkpoint_seq
from torch import Tensor, nn

from offramp.zoo.vil_attention import FullAttention, WindowAttention
from offramp.zoo.vil_tables import resize_line, table
from offramp.zoo.vil_windows import Grid

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class PatchEmbed(nn.Module):
    """A map in patches, behind new global tokens; (B, C', H·p, W·p) → (B, g + H·W, C).

    Args:
        ape: add learned positions, a row's and a column's for each patch, side by side.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        grid: Grid,
        *,
        patch_size: int,
        num_globals: int,
        ape: bool,
        drop: float,
    ) -> None:
        super().__init__()
        self.grid, self.num_globals, self.ape = grid, num_globals, ape
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.norm = LayerNorm(dim)
        if num_globals:
            self.global_tokens = table(1, num_globals, dim)
        if ape:
            self.row_pos, self.column_pos = table(1, grid[0], dim // 2), table(1, grid[1], dim // 2)
            if num_globals:
                self.global_pos = table(1, num_globals, dim)
        self.drop = nn.Dropout(drop)

    def set_grid(self, grid: Grid) -> None:
        """Resize the position tables for a map of H × W patches."""
        self.grid = grid
        if self.ape:
            for name, length in zip(("row_pos", "column_pos"), grid, strict=True):
                old = getattr(self, name)
                new = nn.Parameter(resize_line(old.detach(), length), old.requires_grad)
                setattr(self, name, new)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(x).flatten(2).transpose(1, 2))
        if self.ape:
            rows = self.row_pos.unsqueeze(2).expand(-1, -1, self.grid[1], -1)
            columns = self.column_pos.unsqueeze(1).expand(-1, self.grid[0], -1, -1)
            x = x + torch.cat([rows, columns], 3).flatten(1, 2)
        if self.num_globals:
            first = self.global_tokens + self.global_pos if self.ape else self.global_tokens
            x = torch.cat([first.expand(x.shape[0], -1, -1), x], 1)
        return self.drop(x)


class ViLBlock(nn.Module):
    """Attention and MLP, each on normalised tokens and added; x (B, g + H·W, C) → x."""

    def __init__(
        self,
        dim: int,
        attn: WindowAttention | FullAttention,
        *,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Patches of one size and their blocks; (B, C', H·p, W·p) → tokens (B, g + H·W, C).

    Args:
        drop_paths: how often each block's branches are dropped in training; one block per entry.
        window: options of `WindowAttention` for a stage of sliding windows; None: full attention.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        patch_size: int,
        num_globals: int,
        drop_paths: Sequence[float],
        window: dict[str, Any] | None,
        rpb: bool,
        mlp_ratio: float,
        pos_drop: float,
        proj_drop: float,
        attn_drop: float,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(
            in_chans,
            dim,
            grid,
            patch_size=patch_size,
            num_globals=num_globals,
            ape=not rpb,
            drop=pos_drop,
        )
        options: dict[str, Any] = {
            "num_globals": num_globals,
            "rpb": rpb,
            "attn_drop": attn_drop,
            "proj_drop": proj_drop,
        }

        def attention() -> WindowAttention | FullAttention:
            if window is None:
                return FullAttention(dim, num_heads, grid, **options)
            return WindowAttention(dim, num_heads, grid, **options, **window)

        self.blocks = nn.Sequential(
            *(
                ViLBlock(dim, attention(), mlp_ratio=mlp_ratio, proj_drop=proj_drop, drop_path=rate)
                for rate in drop_paths
            )
        )
        self.grad_checkpointing = False

    @property
    def grid(self) -> Grid:
        """H × W patches."""
        return self.patch_embed.grid

    @property
    def num_globals(self) -> int:
        return self.patch_embed.num_globals

    def set_grid(self, grid: Grid) -> None:
        """Resize the tables for a map of H × W patches."""
        self.patch_embed.set_grid(grid)
        for block in self.blocks:
            assert isinstance(block, ViLBlock)
            block.attn.set_grid(grid)

    def to_map(self, x: Tensor) -> Tensor:
        """Tokens (B, g + H·W, C) → patches as a map (B, C, H, W)."""
        return x[:, self.num_globals :].transpose(1, 2).unflatten(2, self.grid)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)
