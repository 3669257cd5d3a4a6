"""Taps: heads that read inside a block, on a chain that computes what it always did."""

from pathlib import Path
from typing import Any

import pytest
import torch

import offramp
from offramp.chains.tapped import Tap
from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from tiny import TINY, tiny_model

LIST: list[dict[str, Any]] = [
    {"after": 1, "head": "linear", "options": {"pool": "both"}, "tap": "attention"},
    {"after": 2, "head": "linear"},
    {"after": 3, "head": "mlp", "tap": "ffn"},
]


@pytest.fixture
def tapped() -> MultiExitModel:
    return tiny_model(LIST)


def test_the_final_answer_keeps_its_bits(tapped: MultiExitModel, images: torch.Tensor) -> None:
    assert torch.equal(tapped(images)[-1][0], tapped.backbone(images))
    tapped.backbone.train()
    assert torch.equal(tapped(images)[-1][0], tapped.backbone(images))


@pytest.mark.parametrize(("k", "tap"), [(0, "attention"), (2, "ffn")])
def test_heads_read_inside_the_block(
    k: int, tap: Tap, tapped: MultiExitModel, images: torch.Tensor
) -> None:
    """What a hook on timm's own module sees."""
    seen = []
    block = tapped.backbone.blocks[k]
    module = block.attn if tap == "attention" else block.mlp.act
    module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    state = list(tapped.walk(images))[k]
    tokens = tapped.chain.tokens(state, k)
    assert torch.equal(tokens.classes, seen[0][:, :1])
    torch.testing.assert_close(tokens.patches, seen[0][:, 1:].mean(dim=1, keepdim=True))
    assert tokens.patches.shape[-1] == tapped.chain.token_spec(k).width
    assert tapped.chain.token_spec(k).width == (48 if tap == "attention" else 192)


def test_segments_joined_are_the_model(tapped: MultiExitModel, images: torch.Tensor) -> None:
    whole = tapped(images)
    for active in ([0, 1, 2], [0, 2], [2], []):
        inputs: tuple[torch.Tensor, ...] = (images,)
        for segment in tapped.segments(active, inference=True):
            inputs, said = segment(*inputs)
            torch.testing.assert_close(said[0], whole[segment.exit_index][0])
            width = tapped.chain.schema_after(segment.stop - 1).chain_width
            assert segment.exit_index == 3 or len(inputs) == width


def test_it_saves_loads_and_is_counted(
    tapped: MultiExitModel, images: torch.Tensor, tmp_path: Path
) -> None:
    tapped.save_pretrained(tmp_path)
    again = offramp.load(tmp_path)
    assert again.config.exits == tapped.config.exits
    assert torch.equal(again(images)[0][0], tapped(images)[0][0])
    assert model_costs(tapped).full == model_costs(tiny_model("linear")).full


def test_the_usual_tap_leaves_no_trace_in_fingerprints() -> None:
    plain = tiny_model("linear")
    assert "tap" not in plain.config.model_dump_json()
    assert plain.fingerprint() != tiny_model("linear", seed=1).fingerprint()
    spoken = [{"after": k, "head": "linear", "tap": "block"} for k in (1, 2, 3)]
    assert tiny_model(spoken).fingerprint() == plain.fingerprint()


def create(**options: Any) -> MultiExitModel:
    return offramp.create(
        "deit_tiny_patch16_224", num_classes=10, image_size=32, backbone_args=TINY, **options
    )


def test_a_layout_is_tapped_as_a_whole() -> None:
    model = create(exits="linear", at=[1, 3], tap="ffn")
    assert [spec.tap for spec in model.config.exits] == ["ffn", "ffn"]
    with pytest.raises(OfframpError, match="count, at, tap and options go with a layout's name"):
        create(exits=LIST, tap="ffn")


def test_what_cannot_be_tapped_is_refused() -> None:
    with pytest.raises(OfframpError, match="needs tokens on a grid; these have none"):
        create(exits="cnn_add_ee", at=[1], tap="attention")
    with pytest.raises(OfframpError, match="tap = 'ffn' looks into the plain blocks of timm's ViT"):
        offramp.create(
            "mobilenetv3_small_050", exits="linear", at=[2], tap="ffn", num_classes=3, image_size=32
        )


def test_heads_inside_a_frozen_block_train_from_cached_features(tmp_path: Path) -> None:
    model = tiny_model(LIST, image_size=8, patch_size=2, embed_dim=32, num_heads=2)
    images = torch.randn(3, 3, 8, 8)
    before = model(images)
    offramp.fit(
        model,
        recipe="frozen",
        data=offramp.data.open_dataset("digits", limit=64),
        progress=False,
        cache_gb=0.01,
        heads={"epochs": 1, "batch_size": 32, "lr": 1e-3},
    )
    assert torch.equal(model(images)[-1][0], before[-1][0])
    assert not torch.equal(model(images)[0][0], before[0][0])
