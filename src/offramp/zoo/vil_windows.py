"""Chunks and sliding windows of ViL: how a map is cut, what each chunk reads, what is masked.

Symbols: a map of H × W patches is cut into M × N chunks of w × w = S patches, padded with zeros at
the bottom and the right; a chunk may read itself and its eight neighbours; h heads of m channels.
"""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]

# chunk rows and columns from a chunk to those it may read, in the order of `windows`
OFFSETS = tuple((a, b) for b in (-1, 0, 1) for a in (-1, 0, 1))
OWN = OFFSETS.index((0, 0))


def chunk(x: Tensor, grid: Grid, w: int, heads: int) -> Tensor:
    """Patches (B, H·W, h·m) in raster order → chunks (M, B, h·N, S, m)."""
    below, right = -grid[0] % w, -grid[1] % w
    x = x.unflatten(1, grid)
    if below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    x = x.unflatten(3, (heads, -1)).unflatten(2, (-1, w)).unflatten(1, (-1, w))
    x = x.permute(1, 0, 5, 3, 2, 4, 6)  # (M, B, h, N, w, w, m)
    return x.contiguous().flatten(4, 5).flatten(2, 3)


def unchunk(bands: list[Tensor], grid: Grid, w: int, heads: int) -> Tensor:
    """Chunk rows (…, B, h·N, S, m), one band below the other → patches (B, H·W, h·m)."""
    maps = []
    for x in bands:
        x = x.unflatten(3, (w, w)).unflatten(2, (heads, -1))  # (…, B, h, N, w, w, m)
        maps.append(x.permute(1, 0, 4, 3, 5, 2, 6))
    x = torch.cat(maps, 1).flatten(5).flatten(3, 4).flatten(1, 2)  # (B, M·w, N·w, h·m)
    return x[:, : grid[0], : grid[1]].flatten(1, 2)


def windows(x: Tensor, shared: Tensor | None, columns: int) -> Tensor:
    """Chunks (M, B, h·N, S, m) → what each may read (M, B, h·N, 3·(3S + g), m), a view.

    Each chunk is stored with those above and below it and the ``shared`` tokens (B, h, g, m); three
    such pieces in a row are a window, and the windows of neighbours overlap in memory. So keys are
    copied three times, not nine. What lies beyond the map, or belongs to the next head, is in
    there too and has to be masked.
    """
    x = F.pad(x, (0, 0, 0, 0, 1, 1, 0, 0, 1, 1))  # (M + 2, B, h·N + 2, S, m)
    pieces = [x[:-2], x[1:-1], x[2:]]
    if shared is not None:
        every = shared.unsqueeze(2).expand(-1, -1, columns, -1, -1).flatten(1, 2)
        pieces.append(F.pad(every, (0, 0, 0, 0, 1, 1)).expand(x.shape[0] - 2, -1, -1, -1, -1))
    x = torch.cat(pieces, 3)  # (M, B, h·N + 2, 3S + g, m)
    return x.unfold(2, 3, 1).movedim(-1, 3).flatten(3, 4)


def chosen_chunks(x: Tensor, shared: Tensor | None, columns: int, chosen: list[int]) -> Tensor:
    """Chunks (M, B, h·N, S, m) → the ``chosen`` of `OFFSETS` for each (M, B, h·N, n·S + g, m).

    The map wraps round; the copies are plain, for any choice.
    """
    x = x.unflatten(2, (-1, columns))  # (M, B, h, N, S, m)
    pieces = [x.roll((-OFFSETS[n][0], -OFFSETS[n][1]), (0, 3)) for n in chosen]
    if shared is not None:
        pieces.append(shared[None, :, :, None].expand(x.shape[0], -1, -1, columns, -1, -1))
    return torch.cat(pieces, 4).flatten(2, 3)


def valid_keys(grid: Grid, w: int, *, cyclic: bool, device: torch.device) -> Tensor:
    """Whether a patch of a chunk's neighbour is part of the map: (M, N, 9, S)."""
    sides = []
    for size, part in zip(grid, (0, 1), strict=True):
        count = -(-size // w)
        place = torch.arange(count, device=device)[:, None] + torch.tensor(
            [offset[part] for offset in OFFSETS], device=device
        )  # (M or N, 9)
        if cyclic:
            place = place % count
        pixel = place[:, :, None] * w + torch.arange(w, device=device)
        sides.append((pixel >= 0) & (pixel < size))  # (M or N, 9, w)
    rows, columns = sides
    return (rows[:, None, :, :, None] & columns[None, :, :, None, :]).flatten(3)


def steps_between(w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns from each patch a chunk reads back to each of its own: two of (S, 9, S)."""
    inner = torch.arange(w * w, device=device)
    found = []
    for part, place in ((0, inner // w), (1, inner % w)):
        offset = torch.tensor([w * o[part] for o in OFFSETS], device=device)
        found.append(place[:, None, None] - (offset[:, None] + place))
    return found[0], found[1]


def equal_rows(height: int, w: int) -> list[tuple[int, int]]:
    """Runs of chunk rows (start, stop) for which the border looks alike."""
    rows = -(-height // w)

    def border(i: int) -> tuple[int, ...]:
        """Patch rows in the chunks above, here and below."""
        return tuple(min(w, max(0, height - k * w)) if k >= 0 else 0 for k in (i - 1, i, i + 1))

    runs = [list(run) for _, run in groupby(range(rows), key=border)]
    return [(run[0], run[-1] + 1) for run in runs]
