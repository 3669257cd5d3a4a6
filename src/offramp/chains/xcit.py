"""timm's Xcit class: attention between channels, then class attention."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.plain import (
    LateClassStep,
    Patches,
    PlainChain,
    PlainStep,
    first_convolution,
)
from offramp.chains.state import State


class XcitStep(nn.Module):
    """One cross-covariance block, whose convolutions see the grid; x (B, N, C) → x."""

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Tensor) -> State:
        return (self.block(x, *self.grid),)


class XcitChain(PlainChain):
    """timm's Xcit as a chain: steps are the patch blocks, then the class-attention blocks.

    Positions are computed for any grid, so any image size will do. There is no class token before
    the first class-attention block; heads there read patches.
    """

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        embed = model.patch_embed
        size = bound_size(image_size, embed.img_size, remedy=None)
        # the patch embedding's stride-2 convolutions pad, so an incomplete patch counts
        grid = (-(-size[0] // embed.patch_size), -(-size[1] // embed.patch_size))
        tail: list[nn.Module] = [PlainStep(block) for block in model.cls_attn_blocks]
        tail[0] = LateClassStep(model, tail[0])
        super().__init__(
            backbone,
            [*(XcitStep(block, grid) for block in model.blocks), *tail],
            Patches(size, grid, first_convolution(embed).in_channels),
            prefix=1,
            class_tokens=1,
            prefix_from=len(model.blocks),
        )

    def embed(self, images: Tensor) -> State:
        model = self._model
        x, _ = model.patch_embed(images)  # (B, N, C)
        if model.pos_embed is not None:
            maps = model.pos_embed(images.shape[0], *self.grid)  # (B, C, H, W)
            x = x + maps.reshape(images.shape[0], -1, x.shape[1]).permute(0, 2, 1)
        return (model.pos_drop(x),)


FAMILIES.register("xcit")(
    Family(
        "timm Xcit: cross-covariance attention, then class attention",
        lambda model: descends(model, "timm.models.xcit", "Xcit"),
        XcitChain,
    )
)
