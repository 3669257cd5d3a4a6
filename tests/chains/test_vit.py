"""Chains of the ViT family: equal to the backbone bit for bit, with the right view of tokens."""

import pytest
import timm
import torch

import offramp
from offramp.chains import FAMILIES
from offramp.errors import OfframpError

SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "num_classes": 7,
}
# name → (timm name, arguments, image size, class tokens, prefix tokens)
VARIANTS = {
    "vit": ("vit_tiny_patch16_224", {}, (32, 32), 1, 1),
    "augreg": ("vit_small_patch32_224.augreg_in21k_ft_in1k", {}, (32, 32), 1, 1),
    "deit": ("deit_tiny_patch16_224", {}, (32, 32), 1, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, (32, 32), 2, 2),
    "deit3": ("deit3_small_patch16_224", {}, (32, 32), 1, 1),
    "registers": (
        "vit_tiny_patch16_224",
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
        (32, 32),
        0,
        2,
    ),
    "class and registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}, (32, 32), 1, 5),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {}, (32, 32), 1, 5),
    "siglip": ("vit_base_patch16_siglip_224", {}, (32, 32), 0, 0),
    "oblong": ("vit_tiny_patch16_224", {"img_size": (16, 40)}, (16, 40), 1, 1),
    "dynamic": ("vit_tiny_patch16_224", {"dynamic_img_size": True}, (24, 48), 1, 1),
    "pre-norm": ("vit_base_patch16_clip_224", {}, (32, 32), 1, 1),
}


def build(name: str) -> tuple[torch.nn.Module, tuple[int, int]]:
    base, arguments, size, _, _ = VARIANTS[name]
    torch.manual_seed(0)
    return timm.create_model(base, **(SMALL | arguments)).eval(), size


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_chain_equals_backbone_bit_for_bit(name: str) -> None:
    model, size = build(name)
    chain = offramp.chain(model, image_size=size)
    x = torch.randn(2, 3, *size)
    assert torch.equal(chain(x), model(x))
    assert chain.num_classes == 7
    assert len(chain) == 3


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_tokens_cover_the_grid_and_split_the_prefix(name: str) -> None:
    model, size = build(name)
    chain = offramp.chain(model, image_size=size)
    _, _, _, class_tokens, prefix = VARIANTS[name]
    state = chain.embed(torch.randn(2, 3, *size))
    for i, step in enumerate(chain.steps):
        state = step(*state)
        tokens, spec = chain.tokens(state, i), chain.token_spec(i)
        assert tokens.patches.shape == (2, spec.patches, spec.width)
        assert tokens.grid == spec.grid == (size[0] // 8, size[1] // 8)
        assert tokens.prefix.shape[1] == prefix
        assert tokens.classes.shape[1] == class_tokens == spec.class_tokens
        assert torch.equal(torch.cat([tokens.prefix, tokens.patches], 1), state[0])


@torch.no_grad()
def test_state_survives_dropping_samples() -> None:
    model, size = build("deit")
    chain = offramp.chain(model, image_size=size)
    x = torch.randn(4, 3, *size)
    keep = torch.tensor([2, 0])
    state = tuple(t.index_select(0, keep) for t in chain.steps[0](*chain.embed(x)))
    for step in chain.steps[1:]:
        state = step(*state)
    torch.testing.assert_close(chain.finish(*state), model(x)[keep], atol=1e-5, rtol=1e-4)


def test_distilled_model_has_two_classifiers() -> None:
    model, _ = build("distilled")
    assert offramp.chain(model).classifier_heads == 2
    assert offramp.chain(build("deit")[0]).classifier_heads == 1
    assert offramp.chain(model).attention_heads == 3


def test_unsupported_model_is_refused_by_name() -> None:
    with pytest.raises(OfframpError, match=r"ResNet is no backbone .*vit.*CONTRIBUTING"):
        offramp.chain(timm.create_model("resnet10t"))


def test_wrong_image_size_is_refused() -> None:
    with pytest.raises(OfframpError, match=r"image_size = \(64, 64\).*built for \(32, 32\)"):
        offramp.chain(build("deit")[0], image_size=64)


def test_families_describe_themselves() -> None:
    assert all(FAMILIES.describe(name) for name in FAMILIES.names())
