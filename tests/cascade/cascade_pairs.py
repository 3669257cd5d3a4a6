"""A small and a big model for cascades, unsure about some images and sure about others."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import offramp
from offramp.model import MultiExitModel
from offramp.model_config import Preprocessing
from offramp.policies import Confidence

CLASSES = 10


def vit(
    width: int = 24,
    depth: int = 2,
    size: int = 32,
    *,
    exits: tuple[int, ...] = (),
    mean: float = 0.5,
    std: float = 0.25,
    seed: int = 0,
    **options: Any,
) -> MultiExitModel:
    torch.manual_seed(seed)
    model = offramp.create(
        "deit_tiny_patch16_224",
        exits=[{"after": after, "head": "linear"} for after in exits],
        num_classes=CLASSES,
        image_size=size,
        backbone_args={"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 3},
        preprocessing=Preprocessing(image_size=(size, size), mean=(mean,) * 3, std=(std,) * 3),
        **options,
    )
    with torch.no_grad():
        model.backbone.head.weight.normal_(std=0.5)
        for head in model.exits:
            head.classifiers.heads[0].weight.mul_(25)
    return model.eval()


def small() -> MultiExitModel:
    return vit(exits=(1,))


def big() -> MultiExitModel:
    return vit(48, 3, 48, exits=(2,), seed=1)


def pictures(count: int = 12, size: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    rough = torch.rand(count, 3, size, size, generator=generator)
    return rough + torch.randn(count, 3, 1, 1, generator=generator)


def smaller(images: Tensor, size: int = 32) -> Tensor:
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def spread_policy(model: MultiExitModel, images: Tensor) -> Confidence:
    """About a third of those who get there leave at each exit; no score is near a threshold."""
    thresholds, alive = [], torch.ones(len(images), dtype=torch.bool)
    with torch.inference_mode():
        scores = [said.logits.softmax(-1).amax(-1) for said in model(images)]
    for score in scores[:-1]:
        ordered = score[alive].sort(descending=True).values
        rank = max(1, len(ordered) // 3)
        thresholds.append(float(ordered[rank - 1] + ordered[rank]) / 2)
        alive &= score <= thresholds[-1]
    return Confidence([*thresholds, 0.0])
