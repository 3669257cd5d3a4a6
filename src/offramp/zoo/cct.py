"""CCT: a transformer on convolved patches that pools its tokens by importance.

Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers", arXiv:2104.05704.
CCT-L/KxC has L blocks behind C convolutions of kernel K.
"""

from math import prod
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from offramp.errors import OfframpError, suggest
from offramp.zoo.cct_checkpoint import convert
from offramp.zoo.cct_layers import LN_EPS, CCTBlock, SequencePool, Tokenizer
from offramp.zoo.positions import sinusoid

__all__ = ["CCT"]

POSITIONS = ("learnable", "sine")


class CCT(nn.Module):
    """Compact Convolutional Transformer, with timm's manners.

    Args:
        img_size: pixels, one number or (H, W); the position table is made for it.
        conv_kernel: K of the tokenizer's convolutions.
        conv_layers: C, how many there are.
        pos_embed: ``"learnable"``, or ``"sine"`` for a fixed sinusoid. The released ``_sine``
            constructors make a learnable table all the same; weights bring their own table.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        conv_kernel: int = 3,
        conv_layers: int = 1,
        pos_embed: str = "learnable",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.1,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if pos_embed not in POSITIONS:
            raise OfframpError(f"pos_embed: {suggest('position table', pos_embed, POSITIONS)}")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.grad_checkpointing = False
        self.tokenizer = Tokenizer(in_chans, embed_dim, kernel=conv_kernel, convs=conv_layers)
        self.grid_size = self.tokenizer.grid(self.img_size)
        table = sinusoid(prod(self.grid_size), embed_dim)
        if pos_embed == "learnable":
            table = trunc_normal_(torch.empty_like(table), std=0.2)
        self.pos_embed = nn.Parameter(table, requires_grad=pos_embed == "learnable")
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.Sequential(
            *(
                CCTBlock(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                )
                for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
            )
        )
        reduction = (2 * self.tokenizer.stride) ** conv_layers
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": reduction, "module": f"blocks.{i}"}
            for i in range(depth)
        ]
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=LN_EPS)
        self.pool = SequencePool(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = classifier(embed_dim, num_classes)
        self.apply(_initialise)

    def forward_embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → tokens with their positions (B, N, C)."""
        if tuple(x.shape[-2:]) != self.img_size:
            raise OfframpError(
                f"images of {tuple(x.shape[-2:])} pixels, but this model was built for "
                f"{self.img_size} (build it with img_size=…)"
            )
        x = self.tokenizer(x).flatten(2).transpose(1, 2)  # raster order
        return self.pos_drop(x + self.pos_embed)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.forward_embed(x)
        if self.grad_checkpointing and self.training:
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What chosen blocks give, as maps (B, C, H', W') or, with ``"NLC"``, tokens (B, N, C).

        ``indices`` are blocks, or how many of the last ones; ``norm`` puts the final norm on each.
        Without ``intermediates_only`` the normalised last tokens come first.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise OfframpError(suggest("output_fmt", output_fmt, ("NCHW", "NLC")))
        taken, last = feature_take_indices(len(self.blocks), indices)
        found = []
        x = self.forward_embed(x)
        for i, block in enumerate(list(self.blocks)[: last + 1 if stop_early else None]):
            x = block(x)
            if i in taken:
                found.append(self.norm(x) if norm else x)
        if output_fmt == "NCHW":
            found = [y.transpose(1, 2).unflatten(2, self.grid_size).contiguous() for y in found]
        return found if intermediates_only else (self.norm(x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks behind the last chosen one, and if wanted norm and head."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = nn.Sequential(*list(self.blocks)[: last + 1])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; there is only one way of pooling."""
        self.num_classes = num_classes
        self.head = classifier(self.num_features, num_classes).to(self.pos_embed.device)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^pos_embed|tokenizer", "blocks": [(r"^blocks\.(\d+)", None)]}


def classifier(width: int, num_classes: int) -> nn.Module:
    """A linear layer, or nothing for 0 classes."""
    if num_classes == 0:
        return nn.Identity()
    layer = nn.Linear(width, num_classes)
    _initialise(layer)
    return layer


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _create(
    variant: str,
    pretrained: bool,
    given: dict[str, Any],
    size: dict[str, Any],
    *,
    depth: int,
    kernel: int,
    convs: int,
) -> CCT:
    named = {"depth": depth, "conv_kernel": kernel, "conv_layers": convs}
    options = size | named | given
    indices = options.pop("out_indices", 3)
    return build_model_with_cfg(
        CCT,
        variant,
        pretrained,
        pretrained_filter_fn=convert,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **options,
    )


def _cfg(size: int, num_classes: int, **fields: Any) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "tokenizer.0.0",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2104.05704",
        **fields,
    }


CIFAR10 = _cfg(32, 10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100 = _cfg(32, 100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

# A tag says what released weights were trained on; they are given as a file.
default_cfgs = generate_default_cfgs(
    {
        "cct_2_3x2_32.cifar10": CIFAR10,
        "cct_4_3x2_32.cifar10": CIFAR10,
        "cct_6_3x1_32.cifar10": CIFAR10,
        "cct_6_3x2_32.cifar10": CIFAR10,
        "cct_7_3x1_32.cifar10": CIFAR10,
        "cct_7_3x1_32.cifar100": CIFAR100,
        "cct_7_3x2_32.cifar10": CIFAR10,
        "cct_7_7x2_224.flowers102": _cfg(224, 102, crop_pct=0.9),
        "cct_14_7x2_224.in1k": _cfg(224, 1000, crop_pct=0.9),
        "cct_14_7x2_384.in1k": _cfg(384, 1000),
        "cct_14_7x2_384.flowers102": _cfg(384, 102),
    }
)

SMALL = {"embed_dim": 128, "num_heads": 2, "mlp_ratio": 1.0}
MIDDLE = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}
LARGE = {"embed_dim": 384, "num_heads": 6, "mlp_ratio": 3.0}


@register_model
def cct_2_3x2_32(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-2/3x2 for 32 × 32 pixels."""
    return _create("cct_2_3x2_32", pretrained, kwargs, SMALL, depth=2, kernel=3, convs=2)


@register_model
def cct_4_3x2_32(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-4/3x2 for 32 × 32 pixels."""
    return _create("cct_4_3x2_32", pretrained, kwargs, SMALL, depth=4, kernel=3, convs=2)


@register_model
def cct_6_3x1_32(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-6/3x1 for 32 × 32 pixels."""
    return _create("cct_6_3x1_32", pretrained, kwargs, MIDDLE, depth=6, kernel=3, convs=1)


@register_model
def cct_6_3x2_32(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-6/3x2 for 32 × 32 pixels."""
    return _create("cct_6_3x2_32", pretrained, kwargs, MIDDLE, depth=6, kernel=3, convs=2)


@register_model
def cct_7_3x1_32(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-7/3x1 for 32 × 32 pixels: the paper's model for CIFAR."""
    return _create("cct_7_3x1_32", pretrained, kwargs, MIDDLE, depth=7, kernel=3, convs=1)


@register_model
def cct_7_3x2_32(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-7/3x2 for 32 × 32 pixels: a quarter of 3x1's tokens."""
    return _create("cct_7_3x2_32", pretrained, kwargs, MIDDLE, depth=7, kernel=3, convs=2)


@register_model
def cct_7_7x2_224(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-7/7x2 for 224 × 224 pixels."""
    return _create("cct_7_7x2_224", pretrained, kwargs, MIDDLE, depth=7, kernel=7, convs=2)


@register_model
def cct_14_7x2_224(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-14/7x2 for 224 × 224 pixels: the paper's model for ImageNet."""
    return _create("cct_14_7x2_224", pretrained, kwargs, LARGE, depth=14, kernel=7, convs=2)


@register_model
def cct_14_7x2_384(pretrained: bool = False, **kwargs: Any) -> CCT:
    """CCT-14/7x2 for 384 × 384 pixels."""
    return _create("cct_14_7x2_384", pretrained, kwargs, LARGE, depth=14, kernel=7, convs=2)
