"""timm's ConVit class: convolution-like attention first, then a class token joins."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.plain import LateClassStep, PlainChain, PlainStep, bind_patches
from offramp.chains.state import State


class ConvitChain(PlainChain):
    """timm's ConVit as a chain; heads on its gated positional blocks find no class token."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        patches = bind_patches(model.patch_embed, image_size)
        joins = int(model.local_up_to_layer)
        steps: list[nn.Module] = [PlainStep(block) for block in model.blocks]
        if joins < len(steps):
            steps[joins] = LateClassStep(model, steps[joins])
        for block in model.blocks[:joins]:  # these index the grid at their first forward
            count = patches.grid[0] * patches.grid[1]
            if block.attn.rel_indices.shape[1] != count:
                block.attn.rel_indices = block.attn.get_rel_indices(count)
        super().__init__(backbone, steps, patches, prefix=1, class_tokens=1, prefix_from=joins)

    def embed(self, images: Tensor) -> State:
        model = self._model
        x = model.patch_embed(images)
        if model.use_pos_embed:
            x = x + model.pos_embed
        return (model.pos_drop(x),)


FAMILIES.register("convit")(
    Family(
        "timm ConVit: gated positional self-attention, then plain blocks",
        lambda model: descends(model, "timm.models.convit", "ConVit"),
        ConvitChain,
    )
)
