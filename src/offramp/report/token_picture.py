"""Pictures of a reducer at work: kept, merged, waiting and dropped patches over the image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from offramp.chains.reduced import ReducedChain, TokenMap
from offramp.data import eval_transform
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.reducers import kept_tokens
from offramp.report.style import ROLES, figure

Pixels = NDArray[np.float64]
COLUMNS = 6
PAPER = np.array([int(ROLES["paper"][0][i : i + 2], 16) for i in (1, 3, 5)], dtype=float)


def painted(image: Image.Image, grid: tuple[int, int], found: TokenMap, row: int = 0) -> Pixels:
    """The image (H, W, 3) with each patch as its token has it.

    Patches that share a token show their common mean colour, placeholders fade, dropped ones are
    blank.

    Args:
        image: as the network sees it, its crop.
        grid: patches in rows and columns.
        found: of one step; ``row`` of the batch.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    rows, columns = grid
    height, width = pixels.shape[0] // rows * rows, pixels.shape[1] // columns * columns
    tiles = pixels[:height, :width].reshape(rows, height // rows, columns, width // columns, 3)
    tiles = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * columns, height // rows, -1, 3).copy()
    token, shared = found.token[row].numpy(), found.shared[row].numpy()
    for name in np.unique(token[token >= 0]):
        members = token == name
        if members.sum() > 1:
            mean = tiles[members].mean((0, 1, 2))
            tiles[members] = 0.25 * tiles[members] + 0.75 * mean
        elif shared[members].any():  # waits: nothing was computed for it
            tiles[members] = 0.3 * tiles[members] + 0.7 * PAPER
    tiles[token < 0] = PAPER
    together = tiles.reshape(rows, columns, height // rows, -1, 3).transpose(0, 2, 1, 3, 4)
    return together.reshape(height, width, 3)


def follow_tokens(model: MultiExitModel, image: Image.Image) -> tuple[Figure, list[TokenMap]]:
    """An image as the network sees it after every block, and where its patches are.

    Raises:
        OfframpError: for a model without a reducer.
    """
    links = model.chain
    if not isinstance(links, ReducedChain):
        raise OfframpError("this model has no reducer, so every token stays")
    prepared = model.preprocessing
    seen = eval_transform(prepared)(image)  # (3, H, W)
    maps = kept_tokens(links, seen[None])
    mean, std = (seen.new_tensor(v)[:, None, None] for v in (prepared.mean, prepared.std))
    pixels = (255 * (seen * std + mean)).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return token_picture(Image.fromarray(pixels), links.base.grid, maps), maps


def token_picture(image: Image.Image, grid: tuple[int, int], maps: Sequence[TokenMap]) -> Figure:
    """The image after every block, in rows of six."""
    count = -(-len(maps) // COLUMNS)
    made, _ = figure(1.6 * COLUMNS, 1.85 * count, 1)
    made.clear()
    axes: list[Any] = list(made.subplots(count, COLUMNS, squeeze=False).flat)
    for number, axis in enumerate(axes, 1):
        axis.axis("off")
        if number > len(maps):
            continue
        found = maps[number - 1]
        axis.imshow(painted(image, grid, found).round().astype(np.uint8))
        axis.set_title(f"block {number}: {tally(found)}", fontsize=7, color=ROLES["ink"][0])
    return made


def tally(found: TokenMap, row: int = 0) -> str:
    """How many tokens hold the patches, and what became of the others."""
    token, shared = found.token[row], found.shared[row]
    tokens = len(token[token >= 0].unique())
    gone = int((token < 0).sum())
    waiting = int((shared & (token >= 0)).sum()) if tokens + gone == len(token) else 0
    if waiting:
        return f"{tokens - waiting} at work"
    return f"{tokens} tokens" if tokens < len(token) else "all"
