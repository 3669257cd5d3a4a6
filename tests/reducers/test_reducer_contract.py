"""The contract every registered reducer keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reduced_models import CASES, OFF, noise, reduced_chain, reduced_model

import offramp
from offramp.chains.shapes import state_shapes
from offramp.errors import OfframpError
from offramp.reducers import REDUCERS, ReducerSpec, kept_tokens

NAMES = list(CASES)


def test_every_reducer_has_cases() -> None:
    assert {case["name"] for case in CASES.values()} == set(REDUCERS.names()) == set(OFF)
    assert all(REDUCERS.describe(name) for name in REDUCERS.names())


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("backbone", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@torch.no_grad()
def test_switched_off_it_is_the_untouched_model_bit_for_bit(name: str, backbone: str) -> None:
    options = dict(OFF[name])
    if name == "diffrate" and "distilled" in backbone:
        options = {"prune": [18] * 4, "merge": [18] * 4}
    chain = reduced_chain({"name": name, **options}, name=backbone)
    assert torch.equal(chain(noise()), chain.whole(noise()))
    spec = chain.token_spec(3)
    assert spec.grid == (4, 4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_states_are_as_the_schema_says(name: str) -> None:
    chain = reduced_chain(CASES[name])
    width = chain.schema.chain_width
    state = chain.embed(noise())
    for i, step in enumerate(chain.steps):
        assert len(state) == width
        assert all(len(part) == 3 for part in state)
        state = step(*state)
        tokens, spec = chain.tokens(state, i), chain.token_spec(i)
        assert tokens.grid == spec.grid
        assert tokens.prefix.shape == (3, 1, 48)
        if spec.grid is not None:
            assert tokens.patches.shape == (3, 16, 48)
        elif tokens.size is not None:
            assert tokens.size.shape == tokens.patches.shape[:2]
    assert sum(s[0] * s[1] for s in state_shapes(chain)[-1][:1]) < 17 * 48  # fewer tokens in x


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_samples_do_not_see_each_other(name: str) -> None:
    model, images = reduced_model(CASES[name]), noise(5)
    together = model(images)
    for k, alone in enumerate(model(images[2:3])):
        torch.testing.assert_close(alone[0], together[k][0][2:3], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_state_survives_dropping_samples(name: str) -> None:
    chain, images = reduced_chain(CASES[name]), noise(4)
    keep = torch.tensor([3, 1])
    state = chain.embed(images)
    for i, step in enumerate(chain.steps):
        state = step(*state)
        if i == 2:
            state = tuple(part.index_select(0, keep) for part in state)
    torch.testing.assert_close(chain.finish(*state), chain(images)[keep], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_segments_joined_are_the_whole_chain(name: str) -> None:
    model = reduced_model(CASES[name])
    said = model(noise())
    assert len(said) == 4
    torch.testing.assert_close(said[-1][0], model.chain(noise()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_everything_that_is_trained(name: str) -> None:
    model = reduced_model(CASES[name]).train()
    sum(said[0].square().sum() for said in model(noise())).backward()
    classifier = {"backbone.norm", "backbone.head"}  # unused where a mean is classified
    idle = [
        n
        for n, p in model.chain.named_parameters()
        if p.grad is None and not any(n.startswith(part) for part in classifier)
    ]
    assert not idle


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_patch_can_be_found_again(name: str) -> None:
    model = reduced_model(CASES[name])
    maps = kept_tokens(model, noise())
    assert len(maps) == 4
    for found in maps:
        assert found.token.shape == found.shared.shape == (3, 16)
        alone = found.token[~found.shared]
        assert (alone >= 0).all()
    if model.chain.reducer.intact(0):
        assert torch.equal(maps[0].token, torch.arange(16).expand(3, -1))
    assert (maps[-1].shared | maps[-1].gone).any(1).all()  # something happened to every image
    assert model.chain.schema.reducer == reduced_model(CASES[name]).chain.schema.reducer


@pytest.mark.parametrize("name", ["tome", "evo_vit fast", "dynamicvit"])
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    model = reduced_model(CASES[name])
    model.save_pretrained(tmp_path)
    again = offramp.load(tmp_path)
    assert again.config.reducer == model.config.reducer
    assert again.fingerprint() == model.fingerprint()
    with torch.no_grad():
        assert torch.equal(again(noise())[-1][0], model(noise())[-1][0])


def test_the_reducer_is_part_of_the_fingerprint() -> None:
    prints = [
        reduced_model(spec).fingerprint()
        for spec in (None, {"name": "tome", "r": 2}, {"name": "tome", "r": 3})
    ]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_backbone_weights_keep_their_names(name: str) -> None:
    plain, model = reduced_model(None), reduced_model(CASES[name])
    model.backbone.load_state_dict(plain.backbone.state_dict())  # strict
    extra = set(model.chain.state_dict()) - set(plain.chain.state_dict())
    assert all(key.startswith("reducer.") for key in extra)
    weights = plain.backbone.state_dict()
    del weights["blocks.1.attn.qkv.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn\.qkv"):
        model.backbone.load_state_dict(weights)


GRID = [{"after": 3, "head": "lph"}]


@pytest.mark.parametrize("head", ["lph", "gah", "cnn_add_ee", "mixer_ee", "resmlp_ee", "sdn"])
@pytest.mark.parametrize("name", ["tome", "evit", "dynamicvit", "diffrate"])
def test_heads_that_need_a_map_are_refused_once_tokens_are_gone(name: str, head: str) -> None:
    with pytest.raises(OfframpError, match=f"{head} needs tokens on a grid"):
        reduced_model(CASES[name], [{"after": 3, "head": head}])


@pytest.mark.parametrize("name", ["tome restored", "evo_vit", "evo_vit fast"])
@torch.no_grad()
def test_heads_that_need_a_map_get_one_where_it_can_be_restored(name: str) -> None:
    said = reduced_model(CASES[name], GRID)(noise())
    assert said[0][0].shape == (3, 10)


def test_heads_on_a_map_ahead_of_the_first_reduction() -> None:
    model = reduced_model({"name": "evit", "blocks": [3]}, [{"after": 2, "head": "lph"}])
    assert len(model(noise())) == 2


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ("tome", ReducerSpec(name="tome")),
        ({"name": "tome", "r": 8}, ReducerSpec(name="tome", options={"r": 8})),
        ({"name": "tome", "options": {"r": 8}}, ReducerSpec(name="tome", options={"r": 8})),
    ],
)
def test_forms_of_a_specification(given: Any, spec: ReducerSpec) -> None:
    assert ReducerSpec.model_validate(given) == spec


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("tom", "unknown reducer 'tom'.*'tome'"),
        ({"name": "tome", "rate": 2}, "'tome' has no option 'rate'.*slope"),
        ({"name": "tome", "r": -1}, "r = -1"),
        ({"name": "tome", "r": [1] * 5}, "5 entries.*4 blocks"),
        ({"name": "evit", "keep": 0.0}, "keep = 0"),
        ({"name": "evit", "blocks": [5]}, "5 is no block"),
        ({"name": "evo_vit", "start": 1}, "start = 1.*2…4"),
        ({"name": "evo_vit", "selection": "all"}, "'stage' or 'layer'"),
        ({"name": "dynamicvit", "keep": 0.1}, "leaves none of 16"),
        ({"name": "diffrate", "prune": [17, 9, 9, 9]}, "go together"),
        ({"name": "diffrate", "prune": [17, 9, 9, 9], "merge": [17, 12, 9, 9]}, "block 2.*= 12"),
    ],
)
def test_bad_options_are_named(given: Any, sentence: str) -> None:
    with pytest.raises(OfframpError, match=sentence):
        reduced_model(given)


def test_other_backbones_are_refused() -> None:
    with pytest.raises(OfframpError, match=r"plain ViT and DeiT blocks, but .*is none"):
        offramp.create("cait_xxs24_224", exits="linear", reducer="tome")
