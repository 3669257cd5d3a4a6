"""CaiT, XCiT and ConViT: the class token joins after some blocks. PiT: patches are pooled."""

from typing import Any

import pytest
import timm
import torch

import offramp
from families import VARIANTS
from offramp.costs import model_costs

# variant → steps whose tokens hold no class token yet, steps in all
JOINS = {"cait": (4, 6), "xcit": (4, 6), "convit": (2, 4)}


def chain_of(name: str) -> Any:
    return offramp.chain(VARIANTS[name].make(), image_size=VARIANTS[name].image_size)


@pytest.mark.parametrize("name", JOINS)
@torch.no_grad()
def test_the_class_token_is_there_from_its_step_on(name: str) -> None:
    chain, (alone, steps) = chain_of(name), JOINS[name]
    assert len(chain) == steps
    state = chain.embed(torch.randn(2, 3, *chain.image_size))
    for i, step in enumerate(chain.steps):
        state = step(*state)
        expected = 0 if i < alone else 1
        tokens = chain.tokens(state, i)
        assert tokens.prefix.shape[1] == tokens.class_tokens == expected
        assert chain.token_spec(i).class_tokens == expected


@torch.no_grad()
def test_class_attention_leaves_patches_alone() -> None:
    chain = chain_of("cait")
    state = chain.embed(torch.randn(2, 3, 32, 32))
    seen = []
    for i, step in enumerate(chain.steps):
        state = step(*state)
        seen.append(chain.tokens(state, i))
    assert torch.equal(seen[4].patches, seen[3].patches)
    assert torch.equal(seen[5].patches, seen[3].patches)
    assert not torch.equal(seen[5].prefix, seen[4].prefix)


def test_heads_before_and_behind_the_class_token_live_in_one_model() -> None:
    model = offramp.create(VARIANTS["cait"].make(), exits="linear", at=[2, 4, 5])
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x)[-1][0], model.backbone(x))
    assert [head.spec.class_tokens for head in model.heads] == [0, 0, 1]


@pytest.mark.parametrize("name", [*JOINS, "pit distilled"])
def test_costs_of_the_pieces_add_up_to_the_whole(name: str) -> None:
    """The class token of CaiT and PiT, a view of a parameter, once made the counter fail."""
    model = offramp.create(VARIANTS[name].make(), exits="linear", at=[1, 3])
    costs = model_costs(model)
    assert sum(costs.body) + costs.head[-1] == costs.full
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "steps", "first", "last"),
    [
        # He et al. (PiT): 27, 14, 7 patches a side at 224; Touvron et al. (CaiT): 24 + 2 blocks
        ("pit_s_224", 12, (144, (27, 27), 1), (576, (7, 7), 1)),
        ("pit_ti_distilled_224", 12, (64, (27, 27), 2), (256, (7, 7), 2)),
        ("cait_xxs24_224", 26, (192, (14, 14), 0), (192, (14, 14), 1)),
        ("xcit_nano_12_p8_224", 14, (128, (28, 28), 0), (128, (28, 28), 1)),
        ("samvit_base_patch16_224", 12, (768, (14, 14), 0), (768, (14, 14), 0)),
    ],
)
def test_real_models_are_cut_as_published(
    name: str, steps: int, first: tuple[Any, ...], last: tuple[Any, ...]
) -> None:
    with torch.device("meta"):
        chain = offramp.chain(timm.create_model(name))
    assert len(chain) == steps
    assert chain.token_spec(0)[:3] == first
    assert chain.token_spec(steps - 1)[:3] == last
    assert chain.image_size == (224, 224)


def test_pooling_opens_a_stage() -> None:
    chain = chain_of("pit")
    assert [chain.token_spec(i)[:3] for i in range(4)] == [
        (16, (11, 11), 1),
        (32, (6, 6), 1),
        (32, (6, 6), 1),
        (64, (3, 3), 1),
    ]


def test_distilled_pit_has_two_classifiers() -> None:
    assert chain_of("pit").classifier_heads == 1
    distilled = chain_of("pit distilled")
    assert distilled.classifier_heads == 2
    assert distilled.token_spec(3).class_tokens == 2
