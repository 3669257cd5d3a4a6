"""timm's NaFlexVit class, on images of one size."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.maps import any_size
from offramp.chains.plain import Patches, PlainChain
from offramp.chains.rotary import Rotary, rotary_steps
from offramp.chains.state import State
from offramp.errors import OfframpError


class NaFlexChain(PlainChain):
    """timm's NaFlexVit as a chain: its plain mode, images (B, C, H, W) without masks."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        if model.patch_drop is not None:
            raise OfframpError(
                "patch dropout leaves no grid to read (build with patch_drop_rate=0)"
            )
        size = any_size(backbone, image_size)
        rows, columns = model.embeds.dynamic_feat_size(size)
        patches = Patches(size, (int(rows), int(columns)), int(model.in_chans))
        rotary = None if model.rope is None else Rotary(model.rope, patches.grid)
        super().__init__(
            backbone,
            rotary_steps(model.blocks, rotary),
            patches,
            prefix=int(model.num_prefix_tokens),
            class_tokens=int(bool(model.has_class_token)),
        )
        self._rotary = rotary

    def embed(self, images: Tensor) -> State:
        model = self._model
        if self._rotary is not None:
            self._rotary.redraw()
        x, _ = model.embeds(images)  # (B, P + N, C) and the grid
        return (model.norm_pre(x),)


FAMILIES.register("naflexvit")(
    Family(
        "timm NaFlexVit, on images of one size",
        lambda model: descends(model, "timm.models.naflexvit", "NaFlexVit"),
        NaFlexChain,
    )
)
