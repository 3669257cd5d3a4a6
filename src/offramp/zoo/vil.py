"""ViL: a pyramid whose large maps are read through sliding windows and a few global tokens.

Zhang et al., "Multi-Scale Vision Longformer: A New Vision Transformer for High-Resolution Image
Encoding", arXiv:2103.15358.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from offramp.errors import OfframpError, suggest
from offramp.zoo.vil_attention import WindowAttention
from offramp.zoo.vil_checkpoint import convert
from offramp.zoo.vil_stage import LayerNorm, Stage
from offramp.zoo.vil_windows import Grid

__all__ = ["VisionLongformer"]

POOLS = ("avg", "token")


class VisionLongformer(nn.Module):
    """Multi-Scale Vision Longformer, with timm's manners.

    Args:
        img_size: pixels, one number or (H, W); tables and masks are made for it.
        global_pool: ``"avg"`` of the patches, or ``"token"``, the last stage's first global token.
        embed_dims: channels of each stage; the other sequences have an entry per stage, too.
        sparse: stages with sliding windows; the others read their whole map.
        windows: w, the side of a chunk.
        num_globals: g, the global tokens each stage brings along.
        rpb: biases by relative position in every attention, instead of position tables.
        share_global, mask, neighbours: see `WindowAttention`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (48, 96, 192, 384),
        num_heads: Sequence[int] = (1, 3, 3, 6),
        depths: Sequence[int] = (1, 1, 9, 1),
        patch_sizes: Sequence[int] = (4, 2, 2, 2),
        sparse: Sequence[bool] = (True, True, False, False),
        windows: Sequence[int] = (7, 7, 7, 7),
        num_globals: Sequence[int] = (1, 1, 1, 0),
        mlp_ratio: float = 4.0,
        rpb: bool = False,
        share_global: bool = True,
        mask: str = "chunks",
        neighbours: str = "all",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        per_stage = (embed_dims, num_heads, depths, patch_sizes, sparse, windows, num_globals)
        if len({len(values) for values in per_stage}) > 1:
            raise OfframpError(
                "embed_dims, num_heads, depths, patch_sizes, sparse, windows and num_globals need "
                f"an entry per stage each, but have {', '.join(str(len(v)) for v in per_stage)}"
            )
        self.in_chans = in_chans
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.patch_sizes = tuple(patch_sizes)
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        sliding = {"mask": mask, "neighbours": neighbours, "share_global": share_global}
        stages, width = [], in_chans
        for i, grid in enumerate(self._grids(self.img_size)):
            stages.append(
                Stage(
                    width,
                    embed_dims[i],
                    num_heads[i],
                    grid,
                    patch_size=patch_sizes[i],
                    num_globals=num_globals[i],
                    drop_paths=[next(drop_paths) for _ in range(depths[i])],
                    window={"window": windows[i], **sliding} if sparse[i] else None,
                    rpb=rpb,
                    mlp_ratio=mlp_ratio,
                    pos_drop=pos_drop_rate,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                )
            )
            width = embed_dims[i]
        self.stages = nn.ModuleList(stages)
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(
                zip(embed_dims, accumulate(patch_sizes, mul), strict=True)
            )
        ]
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.norm: nn.Module = LayerNorm(width)
        self.head_drop = nn.Dropout(drop_rate)
        self.apply(_initialise)
        self.global_pool = global_pool
        self.reset_classifier(num_classes)

    def _grids(self, img_size: tuple[int, int]) -> list[Grid]:
        """H × W patches of each stage."""
        grids, (height, width) = [], img_size
        for size in self.patch_sizes:
            height, width = height // size, width // size
            grids.append((height, width))
        if min(grids[-1]) == 0:
            raise OfframpError(f"img_size = {img_size}: the last stage would have no patches")
        return grids

    @property
    def num_prefix_tokens(self) -> int:
        """Global tokens of the last stage."""
        return self._stage(-1).num_globals

    def _stage(self, i: int) -> Stage:
        stage = self.stages[i]
        assert isinstance(stage, Stage)
        return stage

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on; tables are resized."""
        self.img_size = to_2tuple(img_size)
        for i, grid in enumerate(self._grids(self.img_size)):
            self._stage(i).set_grid(grid)

    def set_neighbours(self, neighbours: str) -> None:
        """What sliding windows read: ``"all"``, ``"random"`` (training) or ``"own"``.

        The paper trains with ``"random"`` for the first three quarters.
        """
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.set_neighbours(neighbours)

    def forward_embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → tokens of the first stage (B, g + N, C)."""
        self._check(x)
        return self._stage(0).patch_embed(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images → normalised tokens of the last stage, global ones first."""
        return self.norm(self._run(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def _run(self, x: Tensor, stop: int | None = None) -> list[Tensor]:
        """Tokens of each stage, up to ``stop``."""
        self._check(x)
        found: list[Tensor] = []
        for i in range(len(self.stages) if stop is None else stop):
            found.append(self._stage(i)(x if i == 0 else self._stage(i - 1).to_map(found[-1])))
        return found

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[-2:]) != self.img_size:
            raise OfframpError(
                f"images of {tuple(x.shape[-2:])} pixels, but this model was built for "
                f"{self.img_size} (build it with img_size=…)"
            )

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What chosen stages give, as maps (B, C, H, W) or, with ``"NLC"``, patches (B, H·W, C).

        ``indices`` are stages, or how many of the last ones; ``norm`` puts the final norm on the
        last one. Without ``intermediates_only`` the normalised last tokens come first.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise OfframpError(suggest("output_fmt", output_fmt, ("NCHW", "NLC")))
        taken, last = feature_take_indices(len(self.stages), indices)
        found = self._run(x, last + 1 if stop_early else None)
        maps = []
        for i in sorted(taken):
            tokens = found[i]
            if norm and i == len(self.stages) - 1:
                tokens = self.norm(tokens)
            patches = self._stage(i).to_map(tokens)
            maps.append(patches.contiguous() if output_fmt == "NCHW" else patches.flatten(2).mT)
        if intermediates_only:
            return maps
        complete = len(found) == len(self.stages)
        return (self.norm(found[-1]) if complete else found[-1]), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last chosen one, and if wanted norm and head."""
        taken, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = nn.ModuleList(list(self.stages)[: last + 1])
        if prune_norm or cut:  # the norm is as wide as the last stage was
            self.norm = nn.Identity()
        if prune_head or cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, none for 0 classes."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in POOLS:
            raise OfframpError(f"global_pool: {suggest('pooling', pool, POOLS)}")
        if pool == "token" and self.num_prefix_tokens == 0:
            raise OfframpError(
                "global_pool = 'token', but the last stage has no global tokens (num_globals)"
            )
        self.num_classes, self.global_pool = num_classes, pool
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes)
            _initialise(self.head)
            self.head.to(next(self.parameters()))

    def no_weight_decay(self) -> set[str]:
        """Tokens, positions and biases."""
        kinds = ("global_tokens", "_pos", "bias_table", "bias_g2l", "bias_g2g")
        return {name for name, _ in self.named_parameters() if name.endswith(kinds)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for i in range(len(self.stages)):
            self._stage(i).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [
            (r"^stages\.(\d+)\.patch_embed", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        stem = r"^stages\.0\.patch_embed"
        return {"stem": stem, "blocks": r"^stages\.(\d+)" if coarse else blocks}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _create(
    variant: str,
    pretrained: bool,
    given: dict[str, Any],
    dims: Sequence[int],
    heads: Sequence[int],
    depths: Sequence[int],
) -> VisionLongformer:
    options = {"embed_dims": dims, "num_heads": heads, "depths": depths} | given
    indices = options.pop("out_indices", (0, 1, 2, 3))
    return build_model_with_cfg(
        VisionLongformer,
        variant,
        pretrained,
        pretrained_filter_fn=convert,
        feature_cfg={"out_indices": indices, "feature_cls": "getter"},
        **options,
    )


def _cfg(**fields: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": (7, 7),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stages.0.patch_embed.proj",
        "classifier": "head",
        "license": "mit",
        "paper_ids": "arXiv:2103.15358",
        **fields,
    }


# Released weights are given as a file.
default_cfgs = generate_default_cfgs(
    {
        f"vil_{size}.in1k": _cfg()
        for size in ("tiny", "small", "medium_deep", "medium_wide", "base_deep", "base_wide")
    }
)

TINY = ((48, 96, 192, 384), (1, 3, 3, 6))  # channels, heads
SMALL = ((96, 192, 384, 768), (3, 3, 6, 12))


@register_model
def vil_tiny(pretrained: bool = False, **kwargs: Any) -> VisionLongformer:
    """ViL-Tiny; ``rpb=True`` for biases by relative position, as in all of these."""
    return _create("vil_tiny", pretrained, kwargs, *TINY, (1, 1, 9, 1))


@register_model
def vil_small(pretrained: bool = False, **kwargs: Any) -> VisionLongformer:
    """ViL-Small."""
    return _create("vil_small", pretrained, kwargs, *SMALL, (1, 2, 8, 1))


@register_model
def vil_medium_deep(pretrained: bool = False, **kwargs: Any) -> VisionLongformer:
    """ViL-Medium-Deep: as wide as Small."""
    return _create("vil_medium_deep", pretrained, kwargs, *SMALL, (1, 4, 16, 1))


@register_model
def vil_medium_wide(pretrained: bool = False, **kwargs: Any) -> VisionLongformer:
    """ViL-Medium-Wide: as deep as Small."""
    dims, heads = (192, 384, 512, 768), (3, 6, 8, 12)
    return _create("vil_medium_wide", pretrained, kwargs, dims, heads, (1, 2, 8, 1))


@register_model
def vil_base_deep(pretrained: bool = False, **kwargs: Any) -> VisionLongformer:
    """ViL-Base-Deep: as wide as Small."""
    return _create("vil_base_deep", pretrained, kwargs, *SMALL, (1, 8, 24, 1))


@register_model
def vil_base_wide(pretrained: bool = False, **kwargs: Any) -> VisionLongformer:
    """ViL-Base-Wide: as deep as Small."""
    dims, heads = (192, 384, 768, 1024), (3, 6, 12, 16)
    return _create("vil_base_wide", pretrained, kwargs, dims, heads, (1, 2, 8, 1))
