"""Backbones by name: sizes told to those that take one, rebuilt as they were, errors in words."""

from pathlib import Path
from typing import Any

import pytest
import torch

import offramp
from families import VARIANTS
from offramp.backbones import build, build_backbone
from offramp.errors import OfframpError


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("test_efficientnet", {}, {}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, {}),
        ("hiera_tiny_224", {"embed_dim": 16, "stages": (1, 1, 1, 1)}, {"img_size": (64, 96)}),
        ("cct_2_3x2_32", {}, {"img_size": (64, 96)}),
    ],
)
def test_saved_models_come_back_at_their_size(
    name: str, arguments: dict[str, Any], told: dict[str, Any], tmp_path: Path
) -> None:
    """Only those that take ``img_size`` are told, at first and when they are loaded."""
    model = offramp.create(
        name, exits="linear", at=[1], num_classes=5, image_size=(64, 96), backbone_args=arguments
    ).eval()
    assert model.config.backbone_args == arguments | told
    assert model.preprocessing.image_size == model.chain.image_size == (64, 96)
    model.save_pretrained(tmp_path)
    again = offramp.load(tmp_path)
    assert again.chain.image_size == (64, 96)
    assert again.preprocessing == model.preprocessing
    assert again.fingerprint() == model.fingerprint()
    images = torch.randn(2, 3, 64, 96)
    for before, after in zip(model(images), again(images), strict=True):
        assert torch.equal(before[0], after[0])


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("test_efficientnet", 160, 0.485), ("mobilevitv2_050", 256, 0.0), ("pvt_v2_b0", 224, 0.485)],
)
def test_without_a_size_the_published_one_holds(name: str, size: int, mean: float) -> None:
    with torch.device("meta"):
        model = offramp.create(name, exits="linear", at=[2])
    assert model.preprocessing.image_size == model.chain.image_size == (size, size)
    assert model.preprocessing.mean[0] == mean
    assert model.config.backbone_args == {}


def test_the_size_of_an_object_that_takes_any_is_kept() -> None:
    backbone = VARIANTS["efficientnet"].make()
    model = offramp.create(backbone, exits="linear", at=[2], image_size=48)
    assert model.preprocessing.image_size == (48, 48)
    assert model.config.external


def test_windows_are_bound_to_the_size_they_were_built_for() -> None:
    with pytest.raises(OfframpError, match=r"image_size = \(64, 64\), but .* built for \(32, 32\)"):
        offramp.create(VARIANTS["swin"].make(), exits="linear", at=[2], image_size=64)


def test_the_zoo_is_open_to_timm() -> None:
    assert type(build_backbone("cct_2_3x2_32", num_classes=3)).__name__ == "CCT"


def test_a_size_asked_for_twice_is_told_once() -> None:
    built = build("hiera_tiny_224", image_size=64, arguments={"img_size": 32, "embed_dim": 16})
    assert built.arguments == {"img_size": 64, "embed_dim": 16}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("resnet10t", {}, r"ResNet is no backbone .*families: .*efficientnet.*CONTRIBUTING"),
        ("resnet10t", {"image_size": 64}, r"ResNet is no backbone"),
        ("efficientnet_bO", {}, r"unknown model 'efficientnet_bO' \(did you mean"),
        ("test_efficientnet", {"backbone_args": {"img_size": 64}}, "unexpected .*'img_size'"),
        (
            "test_efficientnet",
            {"image_size": 64, "backbone_args": {"img_size": 32}},
            "unexpected .*'img_size'",
        ),
        ("test_efficientnet", {"image_size": 64, "backbone_args": {"width": 2}}, "'width'"),
        ("test_efficientnet", {"at": [1, 5]}, r"exits\[1\]\.after = 5, but .* has 5 blocks"),
        ("test_efficientnet", {"at": [0]}, r"exits\[0\]\.after = 0, .*use 1…4"),
        ("xcit_nano_12_p16_224", {"image_size": 100}, r"cannot be built with .*'img_size': 100"),
        ("crossvit_9_240", {"image_size": 100}, r"100(, | × )100"),
    ],
)
def test_backbones_that_cannot_be_had_are_named(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    with torch.device("meta"), pytest.raises(OfframpError, match=said):
        offramp.create(name, **({"exits": "linear"} | arguments))
