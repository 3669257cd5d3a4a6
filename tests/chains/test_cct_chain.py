"""What is particular to CCT's chain; the contracts all families keep are in test_chain_contract."""

import pytest
import torch

import offramp
from families import VARIANTS
from offramp.errors import OfframpError


@torch.no_grad()
def test_a_step_is_a_block_and_every_token_a_patch() -> None:
    model = VARIANTS["cct oblong sine"].make()
    chain = offramp.chain(model)
    assert (len(chain), chain.image_size, chain.attention_heads) == (3, (64, 96), 3)
    x = torch.randn(2, 3, 64, 96)
    maps = model.forward_intermediates(x, intermediates_only=True)
    state = chain.embed(x)
    for i, step in enumerate(chain.steps):
        state = step(*state)
        tokens = chain.tokens(state, i)
        assert tokens.grid == (4, 6)
        assert tokens.classes.shape == (2, 0, 48)
        assert torch.equal(tokens.patches, maps[i].flatten(2).mT)
    assert not torch.equal(chain.classify(*state), chain.finish(*state))
    assert torch.equal(chain.classify(model.norm(state[0])), chain.finish(*state))


def test_another_image_size_is_refused() -> None:
    model = VARIANTS["cct"].make()
    assert offramp.chain(model, image_size=32).image_size == (32, 32)
    with pytest.raises(OfframpError, match=r"image_size = \(64, 64\).*built for \(32, 32\)"):
        offramp.chain(model, image_size=64)


def test_exits_train_on_it() -> None:
    model = offramp.create(
        "cct_7_3x2_32",
        exits="lgvit",
        at=[1, 2],
        num_classes=10,
        backbone_args={"embed_dim": 48, "depth": 3, "num_heads": 3},
    )
    outputs = model(torch.randn(2, 3, 32, 32))
    assert [tuple(o.logits.shape) for o in outputs] == [(2, 10)] * 3
