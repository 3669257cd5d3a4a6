"""Beit and VisionTransformerRelPos: position biases, per block and shared."""

import copy
from typing import Any

import pytest
import timm
import torch

import offramp
from families import VIT, enliven

SHARED = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}
# name → timm name, arguments, class tokens
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "beit": ("beit_base_patch16_224", {}, 1),
    "beit shared": ("beit_base_patch16_224", SHARED, 1),
    "beit absolute": ("beit_base_patch16_224", {"use_abs_pos_emb": True, "global_pool": ""}, 1),
    "beit oblong": ("beitv2_base_patch16_224", {"img_size": (16, 40)}, 1),
    "relpos": ("vit_relpos_small_patch16_224", {}, 0),
    "relpos post-norm": ("vit_relpos_small_patch16_rpn_224", {}, 0),
    "relpos class": ("vit_relpos_base_patch16_cls_224", {}, 1),
    "relpos shared": ("vit_srelpos_small_patch16_224", {}, 0),
}


def build(name: str) -> torch.nn.Module:
    base, arguments, _ = MODELS[name]
    torch.manual_seed(0)
    return enliven(timm.create_model(base, num_classes=7, **(VIT | arguments))).eval()


@pytest.mark.parametrize("name", [name for name in MODELS if name != "beit absolute"])
@torch.no_grad()
def test_chain_equals_backbone_bit_for_bit(name: str) -> None:
    model = build(name)
    chain = offramp.chain(model)
    x = torch.randn(2, 3, *chain.image_size)
    assert torch.equal(chain(x), model(x))
    assert chain.token_spec(0).class_tokens == MODELS[name][2]
    assert chain.grid == (chain.image_size[0] // 8, chain.image_size[1] // 8)


@torch.no_grad()
def test_unpooled_features_come_out_as_they_are() -> None:
    model = build("beit absolute")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(offramp.chain(model)(x), model(x))


@pytest.mark.parametrize("name", ["beit shared", "relpos shared"])
def test_a_shared_bias_is_trained_through_every_step(name: str) -> None:
    model = build(name)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    offramp.chain(twin)(x).square().sum().backward()
    shared = "rel_pos_bias" if name == "beit shared" else "shared_rel_pos"
    weights = list(getattr(model, shared).parameters())
    assert weights
    for mine, theirs in zip(getattr(twin, shared).parameters(), weights, strict=True):
        assert theirs.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, theirs.grad)
