"""One small member of every backbone family, for the contracts that all of them keep."""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from offramp.zoo.cascade import Cascade  # and all of offramp.zoo registers its models


class Variant(NamedTuple):
    """A tiny backbone: how to build it, its image size, how close its chain comes (0: exactly).

    With ``settle`` its BatchNorms know the statistics of noise. Where they are all that keeps the
    signal from growing, it would else grow until rounding errors decide who attends to whom.
    """

    build: Callable[[], nn.Module]
    image_size: tuple[int, int]
    tolerance: float = 0.0
    settle: bool = False
    gain: float = 1.5
    """Of the weights; where it is large, Performer's exponentials underflow and engines differ."""

    def make(self) -> nn.Module:
        """The backbone in eval mode, always with the same random weights, none of them idle."""
        torch.manual_seed(0)
        model = enliven(self.build(), self.gain)
        if self.settle:
            settle(model, torch.randn(8, 3, *self.image_size))
        return model.eval()


@torch.no_grad()
def enliven(model: nn.Module, gain: float = 1.5) -> nn.Module:
    """Weights under which every part matters and no image looks like another.

    As built, residual branches start at zero and small weights let the signal fade: mistakes in a
    chain would hide there.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(std=gain * module.weight[0].numel() ** -0.5)
    for parameter in model.parameters():
        if parameter.ndim < 2 or not parameter.any():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Give every BatchNorm the statistics of these images."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def from_timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **arguments)


def in_turn(
    *members: tuple[Callable[[], nn.Module], int], average: bool = False
) -> Callable[[], nn.Module]:
    """A cascade of models at these sizes; they want other means and deviations."""

    def build() -> nn.Module:
        norms = [((0.1 * i,) * 3, (0.5 + 0.1 * i,) * 3) for i in range(len(members))]
        models, sizes = zip(*((build(), size) for build, size in members), strict=True)
        return Cascade(models, sizes, average=average, norms=norms)

    return build


def from_transformers(model: str, config: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        settings = getattr(transformers, config)(num_labels=10, **arguments)
        return getattr(transformers, model)(settings)

    return build


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
NAFLEX = {
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 3,
    "pos_embed_grid_size": (4, 6),
}
PIT = {
    "img_size": 48,
    "patch_size": 8,
    "stride": 4,
    "base_dims": (16, 16, 16),
    "depth": (1, 2, 1),
    "heads": (1, 2, 4),
}
HF_VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}
HF_SWIN = {
    "image_size": 60,  # a grid of 15 × 15: windows and merging pad
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}

CCT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (2, 1, 2, 1),
    "num_heads": (1, 2, 4, 8),
}
LEVIT = {
    "img_size": 80,
    "embed_dim": (32, 48, 64),
    "key_dim": 8,
    "num_heads": (2, 3, 4),
    "depth": (1, 1, 1),
}
EVO_LEVIT = LEVIT | {"depth": (3, 2, 1)}
CROSSVIT = {
    "img_size": 60,
    "img_scale": (1.0, 0.8),
    "embed_dim": [24, 48],
    "num_heads": [2, 2],
    "depth": [[1, 2, 0], [1, 2, 0]],
}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}
TWINS = {
    "img_size": 64,
    "embed_dims": (16, 32, 48, 64),
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 3, 4),
}
PVT = {
    "depths": (2, 1, 1, 2),
    "embed_dims": (16, 24, 32, 48),
    "num_heads": (1, 2, 2, 4),
    "mlp_ratios": (2, 2, 2, 2),
}
SHUFFLE = {"embed_dim": 16, "head_dim": 8, "depths": (2, 2, 2), "window_size": 3}
T2T = {"embed_dim": 48, "depth": 3, "num_heads": 3, "token_dim": 16}
HIERA = {"img_size": 64, "embed_dim": 16, "stages": (1, 2, 2, 1)}
VIL = {
    "img_size": 64,
    "embed_dims": (8, 16, 24, 32),
    "num_heads": (1, 2, 2, 4),
    "depths": (1, 2, 1, 1),
    "windows": (3, 3, 3, 3),
}

SMALL_VIT = VIT | {"depth": 2, "embed_dim": 24}
BIG_VIT = VIT | {"img_size": 48}

VARIANTS: dict[str, Variant] = {
    "deit": Variant(from_timm("deit_tiny_patch16_224", **VIT), (32, 32)),
    "deit distilled": Variant(from_timm("deit_tiny_distilled_patch16_224", **VIT), (32, 32)),
    "eva02": Variant(from_timm("eva02_tiny_patch14_224", **VIT), (32, 32)),
    "dinov3": Variant(from_timm("vit_small_patch16_dinov3", **VIT), (24, 40)),
    "rope mixed": Variant(from_timm("vit_small_patch16_rope_mixed_224", **VIT), (32, 32)),
    "beit": Variant(from_timm("beitv2_base_patch16_224", **VIT), (32, 32)),
    "vit relpos": Variant(from_timm("vit_relpos_medium_patch16_cls_224", **VIT), (32, 32)),
    "vit srelpos": Variant(from_timm("vit_srelpos_small_patch16_224", **VIT), (32, 32)),
    "vit sam": Variant(
        from_timm("samvit_base_patch16_224", **VIT, window_size=3, global_attn_indexes=(1, 3)),
        (32, 32),
    ),
    "naflexvit": Variant(from_timm("naflexvit_base_patch16_gap", **NAFLEX), (32, 48)),
    "cait": Variant(from_timm("cait_xxs24_224", **VIT), (32, 32)),
    "xcit": Variant(from_timm("xcit_nano_12_p8_224", **VIT), (36, 44)),  # any size
    "convit": Variant(
        from_timm("convit_tiny", **(VIT | {"embed_dim": 16}), local_up_to_layer=2), (32, 32)
    ),
    "pit": Variant(from_timm("pit_ti_224", **PIT), (48, 48)),
    "pit distilled": Variant(
        from_timm("pit_ti_distilled_224", **(PIT | {"img_size": (48, 64)})), (48, 64)
    ),
    "hf vit": Variant(
        from_transformers("ViTForImageClassification", "ViTConfig", **HF_VIT), (32, 32)
    ),
    "hf deit": Variant(
        from_transformers("DeiTForImageClassification", "DeiTConfig", **HF_VIT), (32, 32)
    ),
    "hf deit with teacher": Variant(
        from_transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig", **HF_VIT),
        (32, 32),
    ),
    "hf dinov2": Variant(
        from_transformers("Dinov2ForImageClassification", "Dinov2Config", **HF_VIT), (24, 48)
    ),
    "hf swin": Variant(
        from_transformers("SwinForImageClassification", "SwinConfig", **HF_SWIN), (60, 60)
    ),
    "swin": Variant(from_timm("swin_tiny_patch4_window7_224", **SWIN), (32, 32)),
    "swin v2": Variant(from_timm("swinv2_tiny_window8_256", **SWIN), (32, 32)),
    "swin v2-cr": Variant(from_timm("swinv2_cr_tiny_224", **SWIN), (32, 32)),
    "swin uneven": Variant(
        from_timm("swin_tiny_patch4_window7_224", **(SWIN | {"img_size": (36, 20)})), (36, 20)
    ),
    "levit": Variant(from_timm("levit_128s", **LEVIT), (80, 80)),
    "levit conv": Variant(from_timm("levit_conv_128s", **LEVIT), (80, 80)),
    "evo levit": Variant(from_timm("evo_levit_128s", **EVO_LEVIT), (80, 80), settle=True),
    "evo levit oblong": Variant(
        from_timm("evo_levit_128s", **(EVO_LEVIT | {"img_size": (64, 96), "keep": 0.3})),
        (64, 96),
        settle=True,
    ),
    "crossvit": Variant(from_timm("crossvit_9_240", **CROSSVIT), (60, 60)),
    "crossvit dagger": Variant(from_timm("crossvit_9_dagger_240", **CROSSVIT), (60, 60)),
    "cct": Variant(from_timm("cct_7_3x2_32", **CCT), (32, 32)),
    "cct oblong sine": Variant(
        from_timm("cct_7_7x2_224", **CCT, img_size=(64, 96), pos_embed="sine"), (64, 96)
    ),
    "efficientnet": Variant(from_timm("test_efficientnet"), (64, 64)),
    "mobilenet v3": Variant(from_timm("tf_mobilenetv3_small_minimal_100"), (50, 70)),
    "mobilevit": Variant(from_timm("mobilevit_xxs"), (48, 64)),
    "mobilevit v2": Variant(from_timm("mobilevitv2_050"), (64, 64)),
    "convnext": Variant(from_timm("convnext_atto", **CONVNEXT), (64, 64)),
    "convnext v2": Variant(from_timm("convnextv2_atto", **CONVNEXT), (70, 64)),
    "pvt v2": Variant(from_timm("pvt_v2_b0", **PVT), (64, 64)),
    "pvt v2 linear": Variant(from_timm("pvt_v2_b2_li", **PVT), (64, 96)),
    "twins svt": Variant(from_timm("twins_svt_small", **TWINS), (64, 64)),
    "twins pcpvt": Variant(
        from_timm("twins_pcpvt_small", **(TWINS | {"img_size": (64, 96)})), (64, 96)
    ),
    "hiera": Variant(from_timm("hiera_tiny_224", **HIERA), (64, 64)),
    "hiera oblong": Variant(
        from_timm("hiera_small_abswin_256", **(HIERA | {"img_size": (64, 96)})), (64, 96)
    ),
    "shuffle": Variant(from_timm("shuffle_tiny", **SHUFFLE, img_size=48), (48, 48), settle=True),
    "shuffle oblong": Variant(
        from_timm("shuffle_tiny", **SHUFFLE, img_size=(96, 48)), (96, 48), settle=True
    ),
    "t2t": Variant(from_timm("t2t_vit_7", **T2T, img_size=48), (48, 48), gain=0.7),
    "t2t transformer oblong": Variant(
        from_timm("t2t_vit_t_14", **T2T, img_size=(64, 48)), (64, 48)
    ),
    "vil": Variant(from_timm("vil_tiny", **VIL), (64, 64)),
    "vil relative, uneven": Variant(
        from_timm(
            "vil_tiny",
            **(VIL | {"img_size": (72, 100), "num_globals": (2, 1, 2, 1), "global_pool": "token"}),
            rpb=True,
            share_global=False,
        ),
        (72, 100),
    ),
    "cascade": Variant(
        in_turn(
            (from_timm("deit_tiny_patch16_224", **SMALL_VIT), 32),
            (from_timm("deit_tiny_patch16_224", **BIG_VIT), 48),
        ),
        (48, 48),
    ),
    "cascade averaged": Variant(
        in_turn(
            (from_timm("deit_tiny_patch16_224", **BIG_VIT), 48),
            (from_timm("test_efficientnet"), 64),
            (from_timm("deit_tiny_distilled_patch16_224", **SMALL_VIT), 32),
            average=True,
        ),
        (64, 64),
    ),
}
