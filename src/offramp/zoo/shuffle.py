"""Shuffle Transformer: windows whose tokens are near each other, then far apart, by turns.

Huang et al., "Shuffle Transformer: Rethinking Spatial Shuffle for Vision Transformer",
arXiv:2106.03650.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, to_2tuple, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from offramp.errors import OfframpError, suggest
from offramp.zoo.checkpoints import strict, unwrap
from offramp.zoo.shuffle_block import PatchMerging, ReLU6, ShuffleBlock

__all__ = ["ShuffleTransformer"]

HEAD_DIM = 32
STEM_WIDTH = 32
STEM_STRIDE = 4


class Stem(nn.Module):
    """Two convolutions of stride 2, one of 1 × 1; images (B, 3, H, W) → (B, H/4, W/4, dim)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = self._halve(in_chans, STEM_WIDTH)
        self.conv2 = self._halve(STEM_WIDTH, dim)
        self.conv3 = nn.Conv2d(dim, dim, 1)

    @staticmethod
    def _halve(before: int, after: int) -> nn.Sequential:
        conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(after), ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # then the permutation is free
        return self.conv3(self.conv2(self.conv1(x))).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Patch merging, except in the first stage, and blocks of one width; (B, H, W, C) → same."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class ShuffleTransformer(nn.Module):
    """Shuffle Transformer, with timm's manners; its maps are (B, H, W, C).

    Args:
        img_size: pixels, one number or (H, W), a multiple of 4·2^(stages − 1)·window_size. Other
            such sizes are accepted in ``forward``: nothing in the model depends on it.
        embed_dim: channels of the first stage; each further stage has twice as many.
        depths: blocks of each stage; every second one shuffles.
        head_dim: channels of an attention head.
        window_size: w, side of a window and of the depthwise kernel; odd.
        drop_path_rate: of the last stage, from 0 in the first; one rate within a stage.

    Raises:
        OfframpError: for sizes that windows do not divide.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        head_dim: int = HEAD_DIM,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if embed_dim % head_dim:
            raise OfframpError(f"embed_dim = {embed_dim} is no multiple of head_dim = {head_dim}")
        if window_size % 2 == 0:
            raise OfframpError(f"window_size = {window_size}, but a depthwise kernel is odd")
        self.num_classes, self.in_chans = num_classes, in_chans
        self.embed_dim, self.window_size = embed_dim, window_size
        self.size_unit = STEM_STRIDE * 2 ** (len(depths) - 1) * window_size
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.check_size(self.img_size)
        self.stem = Stem(in_chans, embed_dim)
        self.stages = nn.Sequential()
        self.feature_info = []
        width = embed_dim
        rates = torch.linspace(0, drop_path_rate, len(depths), device="cpu").tolist()
        for s, rate in enumerate(rates):
            merging: nn.Module = PatchMerging(width) if s else nn.Identity()
            width = embed_dim * 2**s
            blocks = [
                ShuffleBlock(
                    width,
                    width // head_dim,
                    window=window_size,
                    shuffled=i % 2 == 1,
                    mlp_ratio=mlp_ratio,
                    proj_drop=proj_drop_rate,
                    drop_path=rate,
                )
                for i in range(depths[s])
            ]
            self.stages.append(Stage(merging, blocks))
            self.feature_info.append(
                {"num_chs": width, "reduction": STEM_STRIDE * 2**s, "module": f"stages.{s}"}
            )
        self.num_features = self.head_hidden_size = width
        self.head = ClassifierHead(
            width, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC"
        )
        self.apply(_initialise)

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse an image (H, W) whose maps cannot be cut into windows in every stage."""
        if size[0] % self.size_unit or size[1] % self.size_unit or not min(size):
            raise OfframpError(
                f"images of {size[0]} × {size[1]} pixels, but windows of {self.window_size} × "
                f"{self.window_size} need multiples of {self.size_unit} on both sides"
            )

    def forward_embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → the first stage's map (B, H/4, W/4, C)."""
        self.check_size((x.shape[-2], x.shape[-1]))
        return self.stem(x)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(self.forward_embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

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
        """What chosen stages give, as maps (B, C, H, W) or, with ``"NHWC"``, as they are.

        ``indices`` are stages, or how many of the last ones. There is no final norm, so ``norm``
        changes nothing. Without ``intermediates_only`` the last map (B, H, W, C) comes first.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise OfframpError(suggest("output_fmt", output_fmt, ("NCHW", "NHWC")))
        taken, last = feature_take_indices(len(self.stages), indices)
        found = []
        x = self.forward_embed(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = stage(x)
            if i in taken:
                found.append(x.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last chosen one, and if wanted the classifier."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = nn.Sequential(*list(self.stages)[: last + 1])
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.fc.apply(_initialise)

    def no_weight_decay(self) -> set[str]:
        return {n for n, _ in self.named_parameters() if "relative_position_bias_table" in n}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        merging, block = r"^stages\.(\d+)\.downsample", r"^stages\.(\d+)\.blocks\.(\d+)"
        fine = [(merging, (0,)), (block, None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    table = getattr(module, "relative_position_bias_table", None)
    if table is not None:
        trunc_normal_(table, std=0.02)


def convert(checkpoint: Mapping[str, Any], model: ShuffleTransformer) -> dict[str, Tensor]:
    """Released weights, or our own, as a state dict of ``model``.

    Released blocks come in pairs.

    Raises:
        OfframpError: when names or shapes do not fit.
    """
    state = unwrap(checkpoint)
    if any(name.startswith("to_token.") for name in state):
        kept = (name for name in state if not name.endswith("relative_position_index"))
        state = {_rename(name): state[name] for name in kept}
    return strict(state, model)


def _rename(name: str) -> str:
    if name.startswith("to_token."):
        return name.replace("to_token.", "stem.")
    if name.startswith("head."):
        return name.replace("head.", "head.fc.")
    found = re.match(r"stage(\d+)\.(?:patch_partition|layers\.(\d+)\.([01]))\.", name)
    if not found:
        return name
    stage, pair, second = found.groups()
    part = "downsample" if pair is None else f"blocks.{2 * int(pair) + int(second)}"
    rest = name[found.end() :].replace("attn.to_qkv.", "attn.qkv.")
    return f"stages.{int(stage) - 1}.{part}.{rest}"


def _create(
    variant: str, pretrained: bool, given: dict[str, Any], **named: Any
) -> ShuffleTransformer:
    options = named | given
    indices = options.pop("out_indices", tuple(range(len(options["depths"]))))
    return build_model_with_cfg(
        ShuffleTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=convert,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **options,
    )


CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv1.0",
    "classifier": "head.fc",
    "license": "mit",
    "paper_ids": "arXiv:2106.03650",
}

# The tag says what released weights were trained on; they are given as a file.
default_cfgs = generate_default_cfgs(
    {f"shuffle_{size}.in1k": CFG for size in ("tiny", "small", "base")}
)

SHALLOW, DEEP = (2, 2, 6, 2), (2, 2, 18, 2)


@register_model
def shuffle_tiny(pretrained: bool = False, **kwargs: Any) -> ShuffleTransformer:
    """Shuffle-T: widths 96 to 768 in 12 blocks."""
    return _create(
        "shuffle_tiny", pretrained, kwargs, embed_dim=96, depths=SHALLOW, drop_path_rate=0.1
    )


@register_model
def shuffle_small(pretrained: bool = False, **kwargs: Any) -> ShuffleTransformer:
    """Shuffle-S: widths 96 to 768 in 24 blocks."""
    return _create(
        "shuffle_small", pretrained, kwargs, embed_dim=96, depths=DEEP, drop_path_rate=0.3
    )


@register_model
def shuffle_base(pretrained: bool = False, **kwargs: Any) -> ShuffleTransformer:
    """Shuffle-B: widths 128 to 1024 in 24 blocks."""
    return _create(
        "shuffle_base", pretrained, kwargs, embed_dim=128, depths=DEEP, drop_path_rate=0.5
    )
