"""timm's Eva class: EVA, EVA02, DINOv3, RoPE-ViT, Perception Encoder and their kin."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.plain import PlainChain, bind_patches
from offramp.chains.rotary import Rotary, rotary_steps
from offramp.chains.state import State
from offramp.errors import OfframpError


class EvaChain(PlainChain):
    """timm's Eva as a chain; rotary tables are constants of it."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        if model.patch_drop is not None:
            raise OfframpError(
                "patch dropout leaves no grid to read (build with patch_drop_rate=0)"
            )
        patches = bind_patches(model.patch_embed, image_size, any_size=model.dynamic_img_size)
        rotary = None if model.rope is None else Rotary(model.rope, patches.grid)
        super().__init__(
            backbone,
            rotary_steps(model.blocks, rotary),
            patches,
            prefix=int(model.num_prefix_tokens),
            class_tokens=int(model.cls_token is not None),
        )
        self._rotary = rotary

    def embed(self, images: Tensor) -> State:
        model = self._model
        x, table = model._pos_embed(model.patch_embed(images))  # (B, P + N, C)
        if self._rotary is not None:
            self._rotary.redraw(table)
        return (model.norm_pre(x),)


FAMILIES.register("eva")(
    Family(
        "timm Eva: EVA, EVA02, DINOv3, RoPE-ViT, Perception Encoder",
        lambda model: descends(model, "timm.models.eva", "Eva"),
        EvaChain,
    )
)
