"""Eva and NaFlexVit: rotary tables are constants of the chain, whatever kind they are."""

import copy
from typing import Any

import pytest
import timm
import torch

import offramp
from families import NAFLEX, VIT, enliven
from offramp.chains.eva import EvaChain
from offramp.errors import OfframpError

# timm name → further arguments, class tokens, prefix tokens
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "eva_giant_patch14_224": ({}, 1, 1),  # no rotary table
    "eva02_enormous_patch14_clip_224": ({}, 1, 1),  # norm behind the branches
    "eva02_base_patch16_clip_224": ({}, 1, 1),
    "vit_medium_patch16_rope_reg1_gap_256": ({}, 0, 1),
    "vit_small_patch16_rope_mixed_ape_224": ({}, 1, 1),
    "vit_pe_core_tiny_patch16_384": ({}, 1, 1),  # pooled by attention
    "vit_small_patch16_lingbot": ({}, 1, 5),
    "vit_base_patch16_sapiens2": ({"num_kv_heads": 3}, 1, 9),  # moves coordinates in training
}
NAFLEX_MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "naflexvit_base_patch16_map": ({}, 0, 1),
    "naflexvit_base_patch16_siglip": ({}, 0, 0),
    "vit_small_patch16_dinov3": ({"use_naflex": True, "img_size": 32}, 1, 5),
}


def build(name: str, **arguments: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return enliven(timm.create_model(name, num_classes=7, **arguments)).eval()


@pytest.mark.parametrize("name", [*MODELS, *NAFLEX_MODELS])
@torch.no_grad()
def test_chain_equals_backbone_bit_for_bit(name: str) -> None:
    sizes = VIT if name in MODELS else NAFLEX
    arguments, class_tokens, prefix = (MODELS | NAFLEX_MODELS)[name]
    model = build(name, **(sizes | arguments))
    chain = offramp.chain(model, image_size=32)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(chain(x), model(x))
    assert len(chain) == 4
    tokens = chain.tokens(chain.embed(x), 0)
    assert tokens.prefix.shape[1] == prefix
    assert tokens.class_tokens == chain.token_spec(0).class_tokens == class_tokens


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
@torch.no_grad()
def test_the_table_is_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name, **VIT)
    chain = offramp.chain(model)
    state = chain.embed(torch.randn(1, 3, 32, 32))

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("timm.layers.pos_embed_sincos.build_rotary_pos_embed", refuse)
    monkeypatch.setattr(type(model.rope), "_create_embed", refuse, raising=False)
    for step in chain.steps:
        state = step(*state)


@torch.no_grad()
def test_the_table_follows_the_model_to_another_device() -> None:
    chain = offramp.chain(build("vit_small_patch16_dinov3", **VIT))
    assert chain(torch.randn(2, 3, 32, 32)).device.type == "cpu"
    chain.to("meta")
    assert chain(torch.empty(2, 3, 32, 32, device="meta")).device.type == "meta"


@torch.no_grad()
def test_a_table_made_in_inference_mode_serves_training() -> None:
    model = build("vit_small_patch16_dinov3", **VIT).requires_grad_(True)
    with torch.inference_mode():
        chain = offramp.chain(model, image_size=(24, 40))
    with torch.enable_grad():
        chain(torch.randn(2, 3, 24, 40)).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_learned_frequencies_are_trained_through_the_chain() -> None:
    model = build("vit_small_patch16_rope_mixed_224", **VIT)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    offramp.chain(twin)(x).square().sum().backward()
    assert model.rope.freqs.grad.abs().amin(dim=(0, 2, 3)).min() > 0
    torch.testing.assert_close(twin.rope.freqs.grad, model.rope.freqs.grad)


@torch.no_grad()
def test_coordinates_move_in_training_by_one_draw_for_all_blocks() -> None:
    model = build("vit_base_patch16_sapiens2", **VIT, num_kv_heads=3).train()
    chain = offramp.chain(model)
    x = torch.randn(2, 3, 32, 32)
    said = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        said.append(chain(x))
        assert torch.equal(said[-1], expected)
    assert not torch.equal(*said)
    model.eval()
    assert torch.equal(chain(x), model(x))


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("eva02_tiny_patch14_224", {"patch_drop_rate": 0.1}, "patch_drop_rate=0"),
        ("vit_small_patch16_rope_mixed_224", {"dynamic_img_size": True}, "one image size"),
        (
            "vit_small_patch16_rope_mixed_224",
            {"rope_shift_coords": 0.5},
            "without dynamic_img_size, rope_shift_coords",
        ),
    ],
)
def test_what_no_chain_can_do_is_refused(
    name: str, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OfframpError, match=sentence):
        offramp.chain(build(name, **VIT, **arguments))


def test_real_models_are_cut_as_published() -> None:
    with torch.device("meta"):
        model = timm.create_model("eva_giant_patch14_224")
    chain = EvaChain(model)
    assert len(chain) == 40
    assert chain.token_spec(0)[:3] == (1408, (16, 16), 1)
    assert chain.attention_heads == 16
