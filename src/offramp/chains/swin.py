"""timm's Swin family: Swin Transformer, V2, and V2-CR, pyramids of windowed attention."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class SwinStep(nn.Module):
    """One windowed block, behind the patch merging where it opens a stage; x (B, H, W, C) → x."""

    def __init__(self, block: nn.Module, merge: nn.Module | None) -> None:
        super().__init__()
        self.merge, self.block = merge, block

    def forward(self, x: Tensor) -> State:
        if self.merge is not None:
            x = self.merge(x)  # (B, ⌈H/2⌉, ⌈W/2⌉, 2C)
        return (self.block(x),)


class SwinChain(Chain):
    """Swin v1 and v2 as a chain; the state is ``(x,)``, x (B, H, W, C) of the current stage.

    Patch merging belongs to the first step of the next stage, so a head at a stage's end reads the
    larger map. There is no class token.
    """

    schema = Schema(backbone=("x",))
    stages_name = "layers"

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        size = bound_size(
            image_size,
            model.patch_embed.img_size,
            remedy="img_size=… or strict_img_size=False"
            if model.patch_embed.strict_img_size
            else None,
        )
        rows, columns = (
            side // patch for side, patch in zip(size, model.patch_embed.patch_size, strict=True)
        )
        steps, self._specs = [], []
        for stage in getattr(model, self.stages_name):
            merges = not isinstance(stage.downsample, nn.Identity)
            if merges:
                rows, columns = -(-rows // 2), -(-columns // 2)  # odd sides are padded
            for j, block in enumerate(stage.blocks):
                steps.append(SwinStep(block, stage.downsample if merges and j == 0 else None))
                self._specs.append(TokenSpec(int(block.dim), (rows, columns)))
        super().__init__(backbone, steps)
        self.image_size = size
        self.in_chans = int(model.patch_embed.proj.in_channels)
        self.num_classes = int(model.num_classes)
        self._heads = int(block.attn.num_heads)

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        return (self._model.patch_embed(images),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(self._model.norm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        patches = state[0].flatten(1, 2)  # (B, H·W, C)
        return Tokens(patches=patches, grid=self._specs[step].grid, prefix=patches[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return self._heads


class SwinCrChain(SwinChain):
    """Swin v2-CR: its stages exchange (B, C, H, W), its blocks and this state (B, H, W, C).

    Its final norm is part of the last block, so there is none to leave out.
    """

    stages_name = "stages"

    def embed(self, images: Tensor) -> State:
        return (self._model.patch_embed(images).permute(0, 2, 3, 1),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x.permute(0, 3, 1, 2))

    def classify(self, *state: Tensor) -> Tensor:
        return Chain.classify(self, *state)


def _is_swin(model: nn.Module) -> bool:
    return descends(model, "timm", "SwinTransformer", "SwinTransformerV2")


def _is_swin_cr(model: nn.Module) -> bool:
    return descends(model, "timm", "SwinTransformerV2Cr")


FAMILIES.register("swin")(Family("timm SwinTransformer and V2", _is_swin, SwinChain))
FAMILIES.register("swin-cr")(Family("timm SwinTransformerV2Cr", _is_swin_cr, SwinCrChain))
