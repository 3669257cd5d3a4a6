"""Rotary position tables as constants of a chain.

A table says by which angles queries and keys are turned at each patch. It depends on the grid
alone (in RoPE-mixed also on frequencies learned per block), so it is no part of the state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from offramp.chains.plain import PlainStep
from offramp.chains.state import State
from offramp.errors import OfframpError


class Rotary:
    """timm's rotary module at one grid, as the steps of a chain read it.

    A module built for one grid holds its table as a buffer. One for any grid computes it at every
    forward; here that is done once per device. Where training moves the coordinates at random,
    all blocks share one draw, made with the embedding (`redraw`).

    Args:
        rope: timm's rotary module.
        grid: (H, W) in patches.

    Raises:
        OfframpError: for learned frequencies without a fixed grid or with moving coordinates.
    """

    def __init__(self, rope: Any, grid: tuple[int, int]) -> None:
        self.rope, self.grid = rope, list(grid)
        self.mixed = hasattr(rope, "freqs")
        self.fixed = getattr(rope, "feat_shape", None) is not None
        moving = bool(getattr(rope, "aug_active", False))
        if self.mixed and (moving or not self.fixed):
            raise OfframpError(
                "mixed rotary embeddings are supported at one image size and with fixed "
                "coordinates (build the model without dynamic_img_size, rope_shift_coords, "
                "rope_jitter_coords and rope_rescale_coords)"
            )
        self._moving = moving
        self._drawn: Tensor | None = None
        self._table: Tensor | None = None if self.fixed else self._constant()

    @property
    def moves(self) -> bool:
        """Whether the coordinates are being moved at random now."""
        return self._moving and bool(self.rope.training)

    def redraw(self, drawn: Tensor | None = None) -> None:
        """Begin a new pass: where coordinates move, take a new draw (or the one that was made)."""
        if self.moves:
            self._drawn = self.rope.get_embed(shape=self.grid) if drawn is None else drawn

    def _constant(self) -> Tensor:
        """The table of coordinates that stay where they are."""
        training = self.rope.training
        self.rope.training = False
        try:
            with torch.inference_mode(False), torch.no_grad():  # training may use it, too
                return self.rope.get_embed(shape=self.grid)
        finally:
            self.rope.training = training

    def table(self, block: int) -> Tensor:
        """What block ``block`` turns by: (N, 2·d), with learned frequencies (heads, N, 2·d)."""
        if self.mixed:
            from timm.layers.pos_embed_sincos import get_mixed_freqs

            return get_mixed_freqs(self.rope.freqs[:, block], self.rope.t_x, self.rope.t_y)
        if self.moves and self._drawn is not None:
            return self._drawn
        if self._table is None:
            return self.rope.get_embed()
        device = next(self.rope.buffers()).device
        if self._table.device != device:
            self._table = self._constant()
        return self._table


class RotaryStep(nn.Module):
    """One block that turns queries and keys; x (B, P + N, C) → x."""

    def __init__(self, block: nn.Module, rotary: Rotary, index: int) -> None:
        super().__init__()
        self.block, self.rotary, self.index = block, rotary, index

    def forward(self, x: Tensor) -> State:
        return (self.block(x, rope=self.rotary.table(self.index)),)


def rotary_steps(blocks: Any, rotary: Rotary | None) -> list[nn.Module]:
    """A step per block; plain ones where there is no rotary module."""
    if rotary is None:
        return [PlainStep(block) for block in blocks]
    return [RotaryStep(block, rotary, i) for i, block in enumerate(blocks)]
