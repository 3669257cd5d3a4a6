"""timm's VisionTransformer family: ViT, AugReg, DeiT, distilled DeiT, registers, DINOv2."""

from typing import Any

from torch import Tensor, nn

from offramp import vision_cure
from offramp.chains.chain import FAMILIES, Chain, Family
from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.errors import OfframpError


class ViTStep(nn.Module):
    """One transformer block; x (B, P + N, C) → x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (self.block(x),)


class ViTChain(Chain):
    """timm's VisionTransformer as a chain; the state is ``(x,)``, x (B, prefix + H·W, C)."""

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(backbone, [ViTStep(block) for block in _children(backbone, "blocks")])
        model = self._model
        embed = model.patch_embed
        channels = _in_chans(embed)
        if channels is None or not hasattr(embed, "dynamic_feat_size"):
            raise OfframpError(
                f"a ViT whose patches come from {type(embed).__name__} has no fixed grid to read; "
                "use one with timm's PatchEmbed or HybridEmbed"
            )
        if not isinstance(model.patch_drop, nn.Identity):
            raise OfframpError(
                "patch_drop_rate drops patches at random in training, and exits then lack their "
                "grid: build the model with patch_drop_rate=0"
            )
        native = tuple(embed.img_size) if embed.img_size is not None else None
        size = image_size or native
        if size is None:
            raise OfframpError("this model accepts any image size: say which with image_size=")
        if native is not None and size != native and not model.dynamic_img_size:
            raise OfframpError(
                f"image_size = {size}, but this model was built for {native} "
                "(build it with img_size=… or dynamic_img_size=True)"
            )
        self.image_size = (int(size[0]), int(size[1]))
        self.in_chans = channels
        self.num_classes = int(model.num_classes)
        rows, columns = embed.dynamic_feat_size(self.image_size)
        self.grid = (int(rows), int(columns))
        self._prefix = int(model.num_prefix_tokens)
        self._distilled = getattr(model, "dist_token", None) is not None
        self._class_tokens = 2 if self._distilled else int(bool(model.has_class_token))

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        model = self._model
        x = model._pos_embed(model.patch_embed(images))  # (B, P + N, C)
        return (model.norm_pre(model.patch_drop(x)),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(self._model.norm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        return Tokens(
            patches=x[:, self._prefix :],
            grid=self.grid,
            prefix=x[:, : self._prefix],
            class_tokens=self._class_tokens,
        )

    def token_spec(self, step: int) -> TokenSpec:
        return TokenSpec(int(self._model.embed_dim), self.grid, self._class_tokens)

    @property
    def classifier_heads(self) -> int:
        return 2 if self._distilled else 1

    @property
    def attention_heads(self) -> int:
        return int(self._model.blocks[0].attn.num_heads)


def _in_chans(embed: nn.Module) -> int | None:
    """Channels of the images: what the patch embedding says, or its first convolution reads."""
    first = next((m for m in embed.modules() if isinstance(m, nn.Conv2d)), None)
    return getattr(embed, "in_chans", first.in_channels if first else None)


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    return list(getattr(module, name).children())


def _is_vit(model: nn.Module) -> bool:
    vision_cure.ensure()
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(model, VisionTransformer)


FAMILIES.register("vit")(
    Family(
        "timm VisionTransformer: ViT, AugReg, DeiT, DeiT-3, distilled, DINOv2", _is_vit, ViTChain
    )
)
