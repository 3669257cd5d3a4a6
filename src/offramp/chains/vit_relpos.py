"""timm's VisionTransformerRelPos class: ViTs whose only positions are relative biases."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.plain import PlainChain, bind_patches, prepend_class
from offramp.chains.state import State


class RelPosStep(nn.Module):
    """One block; x (B, P + N, C) → x. A position bias shared by all blocks is made in each."""

    def __init__(self, block: nn.Module, shared_bias: Any) -> None:
        super().__init__()
        self.block, self.shared_bias = block, shared_bias

    def forward(self, x: Tensor) -> State:
        bias = None if self.shared_bias is None else self.shared_bias.get_bias()
        return (self.block(x, shared_rel_pos=bias),)


class RelPosChain(PlainChain):
    """timm's VisionTransformerRelPos as a chain; relative position biases are parameters."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        prefix = int(model.num_prefix_tokens)
        super().__init__(
            backbone,
            [RelPosStep(block, model.shared_rel_pos) for block in model.blocks],
            bind_patches(model.patch_embed, image_size),
            prefix=prefix,
            class_tokens=prefix,
        )

    def embed(self, images: Tensor) -> State:
        model = self._model
        x = model.patch_embed(images)  # (B, N, C)
        return (x if model.cls_token is None else prepend_class(model, x),)


FAMILIES.register("vit_relpos")(
    Family(
        "timm VisionTransformerRelPos: vit_relpos_… and vit_srelpos_…",
        lambda model: descends(
            model, "timm.models.vision_transformer_relpos", "VisionTransformerRelPos"
        ),
        RelPosChain,
    )
)
