"""T2T-ViT as a chain, beyond the contract of all families."""

import pytest
import timm
import torch

import offramp
from families import VARIANTS
from offramp.chains import FAMILIES
from offramp.errors import OfframpError


@pytest.mark.parametrize(
    ("name", "blocks", "width", "heads"), [("t2t_vit_7", 7, 256, 4), ("t2t_vit_14", 14, 384, 6)]
)
def test_a_step_is_a_block_on_one_token_for_16_pixels(
    name: str, blocks: int, width: int, heads: int
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    chain = offramp.chain(model)
    assert FAMILIES.get("t2t").matches(model)
    assert len(chain) == blocks
    assert {chain.token_spec(i)[:3] for i in range(blocks)} == {(width, (14, 14), 1)}
    assert (chain.image_size, chain.in_chans) == ((224, 224), 3)
    assert (chain.attention_heads, chain.classifier_heads) == (heads, 1)


@torch.no_grad()
def test_making_tokens_is_part_of_the_embedding() -> None:
    variant = VARIANTS["t2t"]
    chain = offramp.chain(variant.make())
    x = torch.randn(2, 3, *variant.image_size)
    (state,) = chain.embed(x)
    model = chain.backbone
    tokens = chain.tokens((state,), 0)
    table = model.pos_embed[0]
    torch.testing.assert_close(tokens.patches, model.patch_embed(x) + table[1:])
    expected = (model.cls_token[0] + table[:1]).expand(2, 1, -1)
    torch.testing.assert_close(tokens.classes, expected)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(OfframpError, match=r"image_size = \(64, 64\).*built for \(48, 48\)"):
        offramp.chain(VARIANTS["t2t"].make(), image_size=64)


@torch.no_grad()
def test_lgvit_exits_fit_a_resized_model() -> None:
    model = offramp.create("t2t_vit_7", exits="lgvit", count=2, num_classes=5, image_size=64).eval()
    said = model(torch.randn(2, 3, 64, 64))
    assert [tuple(outputs.logits.shape) for outputs in said] == [(2, 5)] * 3
