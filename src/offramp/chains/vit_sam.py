"""timm's VisionTransformerSAM class: windows and a few global blocks on a map of patches."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.plain import PlainStep, bind_patches
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class SAMChain(Chain):
    """timm's VisionTransformerSAM as a chain; the state is ``(x,)``, x (B, H, W, C)."""

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(backbone, [PlainStep(block) for block in self._blocks(backbone)])
        model = self._model
        patches = bind_patches(model.patch_embed, image_size, any_size=model.rope_global is None)
        self.image_size, self.grid, self.in_chans = patches
        self.num_classes = int(model.num_classes)

    @staticmethod
    def _blocks(backbone: Any) -> Any:
        return backbone.blocks

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        from timm.layers import resample_abs_pos_embed_nhwc

        model = self._model
        x = model.patch_embed(images)  # (B, H, W, C)
        if model.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(model.pos_embed, self.grid)
        return (model.norm_pre(model.patch_drop(model.pos_drop(x))),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        model = self._model
        return model.forward_head(model.neck(x.permute(0, 3, 1, 2)))

    def tokens(self, state: State, step: int) -> Tokens:
        patches = state[0].flatten(1, 2)
        return Tokens(patches, self.grid, patches[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return TokenSpec(int(self._model.embed_dim), self.grid)

    @property
    def attention_heads(self) -> int:
        return int(self._model.blocks[-1].attn.num_heads)


FAMILIES.register("vit_sam")(
    Family(
        "timm VisionTransformerSAM: windowed attention with global blocks between",
        lambda model: descends(model, "timm.models.vision_transformer_sam", "VisionTransformerSAM"),
        SAMChain,
    )
)
