"""timm's Cait class: patches first, then a class token that reads them (class attention)."""

from typing import Any

from torch import Tensor, cat, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.plain import LateClassStep, PlainChain, PlainStep, bind_patches
from offramp.chains.state import State


class ClassAttentionStep(nn.Module):
    """One class-attention block: x (B, 1 + N, C) → x, where only the class token has changed."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        patches = x[:, 1:]
        return (cat((self.block(patches, x[:, :1]), patches), dim=1),)


class CaitChain(PlainChain):
    """timm's Cait as a chain: steps are the patch blocks, then the class-attention blocks.

    There is no class token before the first class-attention block; heads there read patches.
    """

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        tail: list[nn.Module] = [ClassAttentionStep(block) for block in model.blocks_token_only]
        tail[0] = LateClassStep(model, tail[0])
        super().__init__(
            backbone,
            [*(PlainStep(block) for block in model.blocks), *tail],
            bind_patches(model.patch_embed, image_size),
            prefix=1,
            class_tokens=1,
            prefix_from=len(model.blocks),
        )

    def embed(self, images: Tensor) -> State:
        model = self._model
        return (model.pos_drop(model.patch_embed(images) + model.pos_embed),)


FAMILIES.register("cait")(
    Family(
        "timm Cait: class attention behind the patch blocks",
        lambda model: descends(model, "timm.models.cait", "Cait"),
        CaitChain,
    )
)
