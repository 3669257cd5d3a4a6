"""timm's Beit class: BEiT and BEiTv2."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.plain import PlainChain, bind_patches, prepend_class
from offramp.chains.state import State


class BeitStep(nn.Module):
    """One block; x (B, 1 + N, C) → x. A position bias shared by all blocks is looked up in each."""

    def __init__(self, block: nn.Module, shared_bias: nn.Module | None) -> None:
        super().__init__()
        self.block, self.shared_bias = block, shared_bias

    def forward(self, x: Tensor) -> State:
        bias = None if self.shared_bias is None else self.shared_bias()
        return (self.block(x, shared_rel_pos_bias=bias),)


class BeitChain(PlainChain):
    """timm's Beit as a chain; relative position biases are parameters, not state."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        super().__init__(
            backbone,
            [BeitStep(block, model.rel_pos_bias) for block in model.blocks],
            bind_patches(model.patch_embed, image_size),
            prefix=1,
            class_tokens=1,
        )

    def embed(self, images: Tensor) -> State:
        model = self._model
        x = prepend_class(model, model.patch_embed(images))
        if model.pos_embed is not None:
            x = x + model.pos_embed
        return (model.pos_drop(x),)


FAMILIES.register("beit")(
    Family(
        "timm Beit: BEiT and BEiTv2",
        lambda model: descends(model, "timm.models.beit", "Beit"),
        BeitChain,
    )
)
