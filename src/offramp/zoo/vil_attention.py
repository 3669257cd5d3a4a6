"""ViL's attention: sliding windows with global tokens, and full attention for small maps.

Zhang et al., "Multi-Scale Vision Longformer", arXiv:2103.15358. Symbols as in `vil_windows`;
g global tokens stand before the patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import OfframpError, suggest
from offramp.zoo.vil_tables import resize_bias, table
from offramp.zoo.vil_windows import (
    OFFSETS,
    OWN,
    Grid,
    chosen_chunks,
    chunk,
    equal_rows,
    steps_between,
    unchunk,
    valid_keys,
    windows,
)

MASKS = ("chunks", "exact", "cyclic")
NEIGHBOURS = ("all", "random", "own")


class WindowAttention(nn.Module):
    """Sliding-window attention whose cost grows with the number of patches; x (B, g + H·W, C) → x.

    A patch reads the patches of its own chunk and of the eight around it, and the global tokens; a
    global token reads everything.

    Args:
        window: w, the side of a chunk.
        mask: which of those patches count: ``"chunks"`` all, ``"exact"`` those at most w rows and
            columns away, ``"cyclic"`` all, of a map that wraps round (released code: 0, 1, −1).
        neighbours: ``"all"``; ``"random"``: in training the own chunk and one neighbour, drawn anew
            at each call; ``"own"``: the own chunk (released code: 0, 1, −1).
        share_global: global tokens use the patches' weights.
        rpb: add a learned bias to the scores, by head and relative position.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        window: int = 7,
        num_globals: int = 1,
        mask: str = "chunks",
        neighbours: str = "all",
        share_global: bool = True,
        rpb: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if mask not in MASKS:
            raise OfframpError(f"mask: {suggest('window mask', mask, MASKS)}")
        self.num_heads, self.num_globals, self.window = num_heads, num_globals, window
        self.mask, self.attn_drop, self.rpb = mask, attn_drop, rpb
        self.set_neighbours(neighbours)
        self.query = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.share_global = share_global or num_globals == 0
        if not self.share_global:
            self.query_global = nn.Linear(dim, dim)
            self.kv_global = nn.Linear(dim, 2 * dim)
            self.proj_global = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if rpb:
            self.bias_table = table((4 * window - 1) ** 2, num_heads)
        if rpb and num_globals:
            self.bias_g2l = table(2, num_heads, num_globals)  # a global reads, a global is read
            self.bias_g2g = table(num_heads, num_globals, num_globals)
        self.set_grid(grid)

    valid: Tensor  # (M, N, 9, S), whether that patch is part of the map
    near: Tensor  # (S, 9, S), whether it is at most w rows and columns away
    index: Tensor  # (S, 9, S), its row of the bias table
    border: Tensor  # (bands, N, 3·(3S + g)), 0 or −∞ for the keys of `windows`

    def set_neighbours(self, neighbours: str) -> None:
        """Choose what a chunk reads: ``"all"``, ``"random"`` or ``"own"``."""
        if neighbours not in NEIGHBOURS:
            raise OfframpError(f"neighbours: {suggest('choice', neighbours, NEIGHBOURS)}")
        self.neighbours = neighbours

    def set_grid(self, grid: Grid) -> None:
        """Make the constants for a map of H × W patches."""
        w, g, device = self.window, self.num_globals, self.proj.weight.device
        self.grid, self.columns, self.bands = grid, -(-grid[1] // w), equal_rows(grid[0], w)
        valid = valid_keys(grid, w, cyclic=self.mask == "cyclic", device=device)
        dy, dx = steps_between(w, device)
        border = torch.stack([valid[start] for start, _ in self.bands]).unflatten(2, (3, 3))
        middle = torch.tensor([False, True, False], device=device)  # globals stand in each piece
        shared = middle[:, None].expand(*border.shape[:2], -1, g)
        border = torch.cat([border.flatten(3), shared], 3).flatten(2)
        constants = {
            "valid": valid,
            "near": (dy.abs() <= w) & (dx.abs() <= w),
            "index": (dy + 2 * w - 1) * (4 * w - 1) + dx + 2 * w - 1,
            "border": minus_infinity(border),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        g = self.num_globals
        q, kv = self.query(x), self.kv(x)
        out = self._patches(q[:, g:], kv)
        if self.share_global:
            out = self.proj(torch.cat([self._globals(q[:, :g], kv), out], 1) if g else out)
        else:
            first = self._globals(self.query_global(x[:, :g]), self.kv_global(x))
            out = torch.cat([self.proj_global(first), self.proj(out)], 1)
        return self.proj_drop(out)

    def _patches(self, q: Tensor, kv: Tensor) -> Tensor:
        """What the patches read: q (B, H·W, C), kv (B, g + H·W, 2C) → (B, H·W, C)."""
        g, h, w, columns = self.num_globals, self.num_heads, self.window, self.columns
        q = chunk(q, self.grid, w, h)  # (M, B, h·N, S, m)
        k, v = chunk(kv[:, g:], self.grid, w, 2 * h).chunk(2, 2)
        # (B, h, g, m); exporters stumble over tensors without elements
        shared_k, shared_v = by_head(kv[:, :g], 2 * h).chunk(2, 1) if g else (None, None)
        narrow = self.neighbours == "own" or (self.neighbours == "random" and self.training)
        if narrow or self.mask == "cyclic":
            chosen = self._draw() if narrow else list(range(len(OFFSETS)))
            k = chosen_chunks(k, shared_k, columns, chosen)
            v = chosen_chunks(v, shared_v, columns, chosen)
            mask = self._chosen_mask(chosen).unsqueeze(1).expand(-1, q.shape[1], -1, -1, -1)
            return unchunk([self._attend(q, k, v, mask.flatten(0, 1))], self.grid, w, h)
        k, v = windows(k, shared_k, columns), windows(v, shared_v, columns)
        local = self._local(slice(None), pieces=3)
        bands = []
        for (start, stop), border in zip(self.bands, self.border, strict=True):
            mask = self._combine(border[None], local)
            bands.append(self._attend(q[start:stop], k[start:stop], v[start:stop], mask))
        return unchunk(bands, self.grid, w, h)

    def _globals(self, q: Tensor, kv: Tensor) -> Tensor:
        """What the global tokens read: q (B, g, C), kv (B, g + H·W, 2C) → (B, g, C)."""
        k, v = by_head(kv, 2 * self.num_heads).chunk(2, 1)
        mask = None
        if self.rpb:
            read = self.bias_g2l[0].unsqueeze(2).expand(-1, -1, k.shape[2] - self.num_globals)
            mask = torch.cat([self.bias_g2g, read], 2)[None]  # (1, h, g, g + H·W)
        out = self._sdpa(by_head(q, self.num_heads), k, v, mask)
        return out.transpose(1, 2).flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention within chunks (…, B, h·N, S, m)."""
        out = self._sdpa(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)
        return out.unflatten(0, (q.shape[0], -1))

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        drop = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)

    def _draw(self) -> list[int]:
        """The chunks to read in a narrow mode: the own one, and perhaps one neighbour."""
        if self.neighbours == "own":
            return [OWN]
        others = [n for n in range(len(OFFSETS)) if n != OWN]
        return [OWN, others[int(torch.randint(len(others), ()))]]

    def _chosen_mask(self, chosen: list[int]) -> Tensor:
        """0 or −∞ and biases for the keys of `chosen_chunks`: (M, h·N, 1 or S, n·S + g)."""
        valid = F.pad(self.valid[:, :, chosen].flatten(2), (0, self.num_globals), value=True)
        return self._combine(
            minus_infinity(valid, self.border.dtype), self._local(chosen, pieces=1)
        )

    def _combine(self, keys: Tensor, local: Tensor | None) -> Tensor:
        """Masks of keys (R, N, K) and what depends on the query (h, S, K) → (R, h·N, 1 or S, K)."""
        mask = keys[:, None, :, None]  # (R, 1, N, 1, K)
        if local is not None:
            mask = mask + local.unsqueeze(1)
        return mask.expand(-1, self.num_heads, -1, -1, -1).flatten(1, 2)

    def _local(self, chosen: list[int] | slice, *, pieces: int) -> Tensor | None:
        """Biases and masks by place in the window, keys in as many pieces: (h or 1, S, K)."""
        if not self.rpb and self.mask != "exact":
            return None
        near, g = self.near[:, chosen], self.num_globals
        if self.rpb:
            local = self.bias_table.T[:, self.index[:, chosen]]  # (h, S, n, S)
            if self.mask == "exact":
                local = local.masked_fill(~near, -torch.inf)
        else:
            local = minus_infinity(near, self.border.dtype)[None]
        local = local.unflatten(2, (pieces, -1)).flatten(3)  # (h, S, pieces, n/pieces·S)
        if g:
            shared = self.bias_g2l[1] if self.rpb else local.new_zeros(1, g)
            shared = shared[:, None, None].expand(-1, *local.shape[1:3], -1)
            local = torch.cat([local, shared], 3)
        return local.flatten(2)


class FullAttention(nn.Module):
    """Attention of all tokens to all; x (B, g + H·W, C) → x.

    Args:
        rpb: add a learned bias to the scores, by head and relative position.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Grid,
        *,
        num_globals: int = 0,
        rpb: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_globals = num_heads, num_globals
        self.attn_drop, self.rpb = attn_drop, rpb
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if rpb:
            self.bias_table = table((2 * grid[0] - 1) * (2 * grid[1] - 1), num_heads)
        if rpb and num_globals:
            self.bias_g2l = table(2, num_heads, num_globals)  # a global reads, a global is read
            self.bias_g2g = table(num_heads, num_globals, num_globals)
        self.grid = grid
        self.set_grid(grid)

    index: Tensor  # (H·W, H·W), row of the bias table

    def set_grid(self, grid: Grid) -> None:
        """Make the constants, and resize the table, for a map of H × W patches."""
        (height, width), old = grid, self.grid
        self.grid = grid
        if self.rpb:
            if grid != old:
                sides = [(2 * rows - 1, 2 * columns - 1) for rows, columns in (old, grid)]
                biases = resize_bias(self.bias_table.detach(), sides[0], sides[1])
                self.bias_table = nn.Parameter(biases, self.bias_table.requires_grad)
            place = torch.arange(height * width, device=self.proj.weight.device)
            y, x = place // width, place % width
            dy, dx = y[:, None] - y + height - 1, x[:, None] - x + width - 1
            self.register_buffer("index", dy * (2 * width - 1) + dx, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = by_head(self.qkv(x), 3 * self.num_heads).chunk(3, 1)
        drop = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(), dropout_p=drop)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def _bias(self) -> Tensor | None:
        """(1, h, g + H·W, g + H·W), rows read columns."""
        if not self.rpb:
            return None
        local, patches = self.bias_table.T[:, self.index], len(self.index)
        if self.num_globals == 0:
            return local[None]
        reads = self.bias_g2l[0].unsqueeze(2).expand(-1, -1, patches)
        is_read = self.bias_g2l[1].unsqueeze(1).expand(-1, patches, -1)
        first = torch.cat([self.bias_g2g, reads], 2)
        return torch.cat([first, torch.cat([is_read, local], 2)], 1)[None]


def by_head(x: Tensor, heads: int) -> Tensor:
    """(B, T, h·m) → (B, h, T, m), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def minus_infinity(keep: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """0 where ``keep`` is true, −∞ elsewhere."""
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(~keep, -torch.inf)
