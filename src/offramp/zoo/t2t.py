"""T2T-ViT: a narrow ViT whose tokens are made from overlapping windows, step by step.

Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
arXiv:2101.11986.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from offramp.zoo.checkpoints import strict, unwrap
from offramp.zoo.positions import sinusoid
from offramp.zoo.t2t_tokens import SPLITS, TokensToToken

__all__ = ["T2TViT"]


class T2TViT(VisionTransformer):
    """timm's VisionTransformer

    - behind tokens-to-token instead of a patch convolution,
    - with a fixed sinusoid as position table, made anew for each image size,
    - without bias in queries, keys and values.

    Args:
        img_size: pixels, one number or (H, W).
        token_layer: attention in tokens-to-token, ``"performer"`` or ``"transformer"``.
        token_dim: width inside tokens-to-token.
        token_drop_rate: dropout there; None takes 0.1 for performers and 0 for transformers.
    """

    pos_embed: nn.Parameter

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        token_layer: str = "performer",
        token_dim: int = 64,
        token_drop_rate: float | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        tokens = partial(
            TokensToToken, token_dim=token_dim, token_layer=token_layer, drop=token_drop_rate
        )
        super().__init__(
            img_size=img_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            embed_layer=tokens,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
            device=device,
            dtype=dtype,
        )
        self.pos_embed.requires_grad_(False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        super().init_weights(mode, needs_reset)
        with torch.no_grad():
            self.pos_embed.copy_(self._table())

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None
    ) -> None:
        """Bind to images of another size, with the position table that belongs to it."""
        self.patch_embed.set_input_size(img_size, patch_size)
        table = self._table().to(self.pos_embed)
        self.pos_embed = nn.Parameter(table, requires_grad=False)

    def _table(self) -> Tensor:
        """Positions (1, 1 + N, dim); the class token has the first."""
        return sinusoid(self.num_prefix_tokens + self.patch_embed.num_patches, self.embed_dim)

    def _pos_embed(self, x: Tensor) -> Tensor:
        classes = self.cls_token.expand(x.shape[0], -1, -1)
        # detached: fixed even where a training has switched on every parameter
        return self.pos_drop(torch.cat((classes, x), dim=1) + self.pos_embed.detach())


def convert(checkpoint: Mapping[str, Any], model: T2TViT) -> dict[str, Tensor]:
    """Released weights, or our own, as a state dict of ``model``.

    The position table of another image size gives way to the model's own.

    Raises:
        OfframpError: when names or shapes do not fit.
    """
    state = unwrap(checkpoint)
    if any(name.startswith("tokens_to_token.") for name in state):
        state = {_rename(name): tensor for name, tensor in state.items()}
        for name, kernel in WINDOWED.items():
            if name in state:
                state[name] = _channels_last(state[name], kernel)
    table, own = state.get("pos_embed"), model.pos_embed.detach()
    if table is not None and table.ndim == 3 and table.shape[1] != own.shape[1]:
        state["pos_embed"] = own
    return strict(state, model)


# released names in tokens-to-token → ours
RENAMED = (
    ("tokens_to_token.attention1.", "patch_embed.layers.0."),
    ("tokens_to_token.attention2.", "patch_embed.layers.1."),
    ("tokens_to_token.", "patch_embed."),
)
RENAMED_IN_LAYERS = {
    "w": "attn.w",
    "kqv.weight": "attn.kqv.weight",
    "kqv.bias": "attn.kqv.bias",
    "proj.weight": "attn.proj.weight",
    "proj.bias": "attn.proj.bias",
    "mlp.0.weight": "mlp.fc1.weight",
    "mlp.0.bias": "mlp.fc1.bias",
    "mlp.2.weight": "mlp.fc2.weight",
    "mlp.2.bias": "mlp.fc2.bias",
}
# what reads windows → side of the window
WINDOWED = {
    f"patch_embed.layers.{i}.{name}": SPLITS[i][0]
    for i in (0, 1)
    for name in ("norm1.weight", "norm1.bias", "attn.kqv.weight", "attn.qkv.weight")
} | {"patch_embed.project.weight": SPLITS[2][0]}


def _rename(name: str) -> str:
    old, new = next(((o, n) for o, n in RENAMED if name.startswith(o)), ("", ""))
    rest = name.removeprefix(old)
    return new + (RENAMED_IN_LAYERS.get(rest, rest) if old else rest)


def _channels_last(tensor: Tensor, kernel: int) -> Tensor:
    """Reorder windows (…, C·k·k) → (…, k·k·C)."""
    if tensor.shape[-1] % kernel**2:
        return tensor  # the wrong shape is reported later
    return tensor.unflatten(-1, (-1, kernel, kernel)).movedim(-3, -1).flatten(-3)


def _create(
    variant: str,
    pretrained: bool,
    given: dict[str, Any],
    size: dict[str, Any],
    *,
    depth: int,
    token_layer: str = "performer",
) -> T2TViT:
    options = size | {"depth": depth, "token_layer": token_layer} | given
    indices = options.pop("out_indices", 3)
    return build_model_with_cfg(
        T2TViT,
        variant,
        pretrained,
        pretrained_filter_fn=convert,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **options,
    )


CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "classifier": "head",
    "license": "bsd-3-clause-clear",
    "paper_ids": "arXiv:2101.11986",
}

# The tag says what released weights were trained on; they are given as a file.
default_cfgs = generate_default_cfgs(
    {f"t2t_vit_{name}.in1k": CFG for name in ("7", "10", "12", "14", "19", "24")}
    | {f"t2t_vit_t_{name}.in1k": CFG for name in ("14", "19", "24")}
)

LITE = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}
SMALL = {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 3.0}
MIDDLE = {"embed_dim": 448, "num_heads": 7, "mlp_ratio": 3.0}
LARGE = {"embed_dim": 512, "num_heads": 8, "mlp_ratio": 3.0}


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-7."""
    return _create("t2t_vit_7", pretrained, kwargs, LITE, depth=7)


@register_model
def t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-10."""
    return _create("t2t_vit_10", pretrained, kwargs, LITE, depth=10)


@register_model
def t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-12."""
    return _create("t2t_vit_12", pretrained, kwargs, LITE, depth=12)


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14."""
    return _create("t2t_vit_14", pretrained, kwargs, SMALL, depth=14)


@register_model
def t2t_vit_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19."""
    return _create("t2t_vit_19", pretrained, kwargs, MIDDLE, depth=19)


@register_model
def t2t_vit_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-24."""
    return _create("t2t_vit_24", pretrained, kwargs, LARGE, depth=24)


@register_model
def t2t_vit_t_14(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-14 with transformers in tokens-to-token."""
    return _create("t2t_vit_t_14", pretrained, kwargs, SMALL, depth=14, token_layer="transformer")


@register_model
def t2t_vit_t_19(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-19 with transformers in tokens-to-token."""
    return _create("t2t_vit_t_19", pretrained, kwargs, MIDDLE, depth=19, token_layer="transformer")


@register_model
def t2t_vit_t_24(pretrained: bool = False, **kwargs: Any) -> T2TViT:
    """T2T-ViT-24 with transformers in tokens-to-token."""
    return _create("t2t_vit_t_24", pretrained, kwargs, LARGE, depth=24, token_layer="transformer")
