"""Chains whose state is one feature map (B, C, H, W), as in convolutional networks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.shapes import state_shapes
from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.errors import OfframpError


class MapStep(nn.Module):
    """One block, behind the downsampling that opens its stage; x (B, C, H, W) → (x,)."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(p for p in parts if not isinstance(p, nn.Identity))

    def forward(self, x: Tensor) -> State:
        for part in self.parts:
            x = part(x)
        return (x,)


class MapChain(Chain):
    """A network of convolutions as a chain, for images of any size; tokens are the map's pixels.

    The grid after each step follows from strides and paddings; it is found once, on the meta
    device.
    """

    schema = Schema(backbone=("x",))

    def __init__(
        self,
        backbone: nn.Module,
        steps: Sequence[nn.Module],
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(backbone, steps)
        model: Any = backbone
        self.image_size = any_size(backbone, image_size)
        self.in_chans, self.num_classes = int(model.in_chans), int(model.num_classes)
        self._specs = [
            TokenSpec(int(width), (int(rows), int(columns)))
            for (width, rows, columns), *_ in state_shapes(self)[1:]
        ]

    def tokens(self, state: State, step: int) -> Tokens:
        return map_tokens(state[0], self._specs[step].grid)

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]


def any_size(backbone: nn.Module, image_size: tuple[int, int] | None) -> tuple[int, int]:
    """The size asked for, or the one a network for any size was published with."""
    published = (getattr(backbone, "pretrained_cfg", None) or {}).get("input_size")
    size = image_size or (published[1:] if published else None)
    if size is None:
        raise OfframpError("this model accepts any image size: say which with image_size=")
    return int(size[0]), int(size[1])


def map_tokens(x: Tensor, grid: tuple[int, int] | None) -> Tokens:
    """A map (B, C, H, W) as tokens (B, H·W, C) in raster order, without prefix."""
    patches = x.flatten(2).transpose(1, 2)
    return Tokens(patches=patches, grid=grid, prefix=patches[:, :0])
