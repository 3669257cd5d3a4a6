"""timm's ConvNeXt family, versions 1 and 2."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.maps import MapChain, MapStep
from offramp.chains.state import State


class ConvNeXtChain(MapChain):
    """timm's ConvNeXt as a chain; a stage's downsampling opens its first step."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        steps = [
            MapStep(stage.downsample, block) if j == 0 else MapStep(block)
            for stage in model.stages
            for j, block in enumerate(stage.blocks)
        ]
        super().__init__(backbone, steps, image_size)

    def embed(self, images: Tensor) -> State:
        model: Any = self.backbone
        return (model.stem(images),)

    def finish(self, *state: Tensor) -> Tensor:
        model: Any = self.backbone
        (x,) = state
        return model.forward_head(model.norm_pre(x))


FAMILIES.register("convnext")(
    Family(
        "timm ConvNeXt and ConvNeXt V2",
        lambda model: descends(model, "timm.models.convnext", "ConvNeXt"),
        ConvNeXtChain,
    )
)
