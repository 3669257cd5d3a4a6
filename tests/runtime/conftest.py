"""A tiny multi-exit model that is unsure about some images and sure about others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from offramp.creation import create
from offramp.exits.lgvit import TokenBatchNorm
from offramp.model import MultiExitModel
from offramp.policies import Confidence

CLASSES = 10


def tiny_model(**arguments: object) -> MultiExitModel:
    """Four blocks on 32 px images, exits after blocks 1 to 3, confidences spread over 0.2 … 1."""
    torch.manual_seed(0)
    model = create(
        "deit_tiny_patch16_224",
        exits=[
            {"after": 1, "head": "lph"},
            {"after": 2, "head": "gah", "options": {"heads": 3}},
            {"after": 3, "head": "linear"},
        ],
        num_classes=CLASSES,
        image_size=32,
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, **arguments},
    )
    with torch.no_grad():
        for head in model.exits:
            for classifier in head.classifiers.heads:
                classifier.weight.mul_(25)
            for module in head.modules():
                if isinstance(module, TokenBatchNorm):
                    module.running_mean.normal_(std=0.1)
                    module.running_var.uniform_(0.5, 1.5)
        model.backbone.head.weight.normal_(std=0.5)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., MultiExitModel]:
    """Builds a fresh one, for tests that change it; keyword arguments go to timm."""
    return tiny_model


@pytest.fixture(scope="module")
def model() -> MultiExitModel:
    return tiny_model()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 3, 32, 32, generator=generator) * torch.rand(
        40, 1, 1, 1, generator=generator
    )


@pytest.fixture(scope="module")
def policy(model: MultiExitModel, images: Tensor) -> Confidence:
    """About a third of those who get there leave at each exit; no score is near a threshold."""
    with torch.inference_mode():
        scores = [said.logits.softmax(-1).amax(-1) for said in model(images)]
    thresholds = []
    alive = torch.ones(len(images), dtype=torch.bool)
    for score in scores[:-1]:
        ordered = score[alive].sort(descending=True).values
        rank = len(ordered) // 3
        threshold = float(ordered[rank - 1] + ordered[rank]) / 2
        thresholds.append(threshold)
        alive &= score <= threshold
    return Confidence([*thresholds, 0.0])
