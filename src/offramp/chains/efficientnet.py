"""timm's EfficientNet and MobileNetV3 classes: EfficientNet, MobileNet V2–V4, and their kin."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.maps import MapChain, MapStep
from offramp.chains.state import State


class EfficientNetChain(MapChain):
    """timm's EfficientNet or MobileNetV3 as a chain; a step is one (inverted residual) block.

    The two differ behind the blocks only: MobileNetV3 pools before its last convolution.
    """

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        steps = [MapStep(block) for stage in model.blocks for block in stage]
        super().__init__(backbone, steps, image_size)
        self._pools_first = hasattr(model, "norm_head")

    def embed(self, images: Tensor) -> State:
        model: Any = self.backbone
        return (model.bn1(model.conv_stem(images)),)

    def finish(self, *state: Tensor) -> Tensor:
        model: Any = self.backbone
        (x,) = state
        if not self._pools_first:
            x = model.bn2(model.conv_head(x))
        return model.forward_head(x)


FAMILIES.register("efficientnet")(
    Family(
        "timm EfficientNet V1/V2 (also tf_…), MobileNet V1–V4, MNASNet, MixNet, LCNet, FBNet",
        lambda model: descends(model, "timm", "EfficientNet", "MobileNetV3"),
        EfficientNetChain,
    )
)
