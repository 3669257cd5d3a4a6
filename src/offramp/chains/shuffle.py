"""The zoo's Shuffle Transformer: a step is a block, and maps are their own tokens."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class ShuffleStep(nn.Module):
    """One block, behind the patch merging where a stage begins; x (B, H, W, C) → x."""

    def __init__(self, downsample: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (self.block(self.downsample(x)),)


class ShuffleChain(Chain):
    """Shuffle Transformer as a chain; the state is ``(x,)``, x (B, H, W, C).

    Blocks come in pairs, near windows and far ones: an exit after an even number of them has seen
    both.
    """

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        size = image_size or model.img_size
        model.check_size(size)
        steps, specs = [], []
        for stage, info in zip(model.stages, model.feature_info, strict=True):
            grid = (size[0] // info["reduction"], size[1] // info["reduction"])
            for i, block in enumerate(stage.blocks):
                steps.append(ShuffleStep(nn.Identity() if i else stage.downsample, block))
                specs.append(TokenSpec(info["num_chs"], grid))
        super().__init__(backbone, steps)
        self._specs = tuple(specs)
        self.image_size = size
        self.in_chans = int(model.in_chans)
        self.num_classes = int(model.num_classes)

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        return (self._model.forward_embed(images),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        patches = x.flatten(1, 2)  # raster order
        return Tokens(patches=patches, grid=self._specs[step].grid, prefix=patches[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return int(self._model.stages[-1].blocks[-1].attn.num_heads)


def _is_shuffle(model: nn.Module) -> bool:
    return descends(model, "offramp.zoo.shuffle", "ShuffleTransformer")


FAMILIES.register("shuffle")(
    Family(
        "Shuffle Transformer: windows of near and of far tokens by turns", _is_shuffle, ShuffleChain
    )
)
