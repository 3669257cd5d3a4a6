"""Shuffle Transformer as a chain, beyond the contract of all families."""

import pytest
import timm
import torch

import offramp
from families import VARIANTS
from offramp.errors import OfframpError


@pytest.mark.parametrize(("name", "blocks"), [("shuffle_tiny", 12), ("shuffle_base", 24)])
def test_a_step_is_a_block_and_sees_its_stages_map(name: str, blocks: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    chain = offramp.chain(model)
    assert chain.image_size == (224, 224)
    assert len(chain) == blocks
    specs = [chain.token_spec(i)[:3] for i in range(blocks)]
    first = model.embed_dim
    assert specs[0] == specs[1] == (first, (56, 56), 0)
    assert specs[2] == specs[3] == (2 * first, (28, 28), 0)
    assert set(specs[4:-2]) == {(4 * first, (14, 14), 0)}
    assert specs[-2] == specs[-1] == (8 * first, (7, 7), 0)
    assert chain.attention_heads == 8 * first // 32
    assert offramp.chain(model, image_size=448).token_spec(0).grid == (112, 112)


@torch.no_grad()
def test_tokens_are_the_map_row_by_row() -> None:
    variant = VARIANTS["shuffle oblong"]
    chain = offramp.chain(variant.make())
    x = torch.randn(2, 3, *variant.image_size)
    _, maps = chain.backbone.forward_intermediates(x)
    state = chain.embed(x)
    for i, step in enumerate(chain.steps):
        state = step(*state)
        tokens = chain.tokens(state, i)
        if i % 2:  # two blocks a stage
            raster = maps[i // 2].flatten(2).transpose(1, 2)
            assert torch.equal(tokens.patches, raster)
            assert tokens.grid == tuple(maps[i // 2].shape[2:])


def test_sizes_that_windows_do_not_divide_are_refused() -> None:
    with pytest.raises(OfframpError, match=r"100 × 48 pixels, .* multiples of 48"):
        offramp.chain(VARIANTS["shuffle"].make(), image_size=(100, 48))


def test_there_is_no_final_norm_to_leave_out() -> None:
    chain = offramp.chain(VARIANTS["shuffle"].make())
    with pytest.raises(OfframpError, match="ShuffleTransformer has no final norm"):
        chain.classify(torch.zeros(1, 3, 3, 64))
