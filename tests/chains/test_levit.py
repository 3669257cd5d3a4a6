"""LeViT's chains: published maps, and attention biases that never go stale."""

import copy

import pytest
import torch
from torch import Tensor

import offramp
from families import VARIANTS, from_timm
from offramp.chains import Chain
from offramp.errors import OfframpError


@pytest.fixture(params=["levit", "levit conv"])
def chain(request: pytest.FixtureRequest) -> Chain:
    return offramp.chain(VARIANTS[request.param].make())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))


def cached(chain: Chain) -> list[Tensor]:
    """The expanded biases that blocks hold."""
    return [b for m in chain.modules() for b in getattr(m, "attention_bias_cache", {}).values()]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("levit_128s", [(2, 128), (4, 256), (5, 384)]),
        ("levit_conv_128s", [(2, 128), (4, 256), (5, 384)]),
        ("levit_384", [(4, 384), (5, 512), (5, 768)]),
    ],
)
def test_published_members_have_the_published_maps(
    name: str, stages: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        chain = offramp.chain(from_timm(name)())
    expected = [
        (width, (side, side))
        for (depth, width), side in zip(stages, (14, 7, 4), strict=True)
        for _ in range(depth)
    ]
    assert [chain.token_spec(i)[:2] for i in range(len(chain))] == expected
    assert chain.classifier_heads == 2


def test_odd_grids_are_halved_upwards(chain: Chain) -> None:
    assert [chain.token_spec(i).grid for i in range(5)] == [(5, 5), *[(3, 3)] * 2, *[(2, 2)] * 2]


@torch.no_grad()
def test_stages_end_with_timms_maps(chain: Chain, x: Tensor) -> None:
    _, maps = chain.backbone.forward_intermediates(x)
    state, ends = chain.embed(x), {0: 0, 2: 1, 4: 2}
    for i, step in enumerate(chain.steps):
        state = step(*state)
        if i in ends:
            expected = maps[ends[i]].flatten(2).transpose(1, 2)
            assert torch.equal(chain.tokens(state, i).patches, expected)


@torch.no_grad()
def test_oblong_images() -> None:
    arguments = {"embed_dim": (32, 48), "key_dim": 8, "num_heads": (2, 3), "depth": (1, 1)}
    model = from_timm("levit_128s", img_size=(80, 48), **arguments)().eval()
    chain = offramp.chain(model)
    images = torch.randn(2, 3, 80, 48)
    assert chain.image_size == (80, 48)
    assert [chain.token_spec(i).grid for i in range(3)] == [(5, 3), (3, 2), (3, 2)]
    assert torch.equal(chain(images), model(images))


def test_a_wrong_size_is_refused(chain: Chain) -> None:
    with pytest.raises(OfframpError, match=r"= \(224, 224\), but .* for \(80, 80\) .*img_size"):
        offramp.chain(chain.backbone, image_size=224)


@torch.no_grad()
def test_weights_loaded_in_evaluation_mode_are_used(chain: Chain, x: Tensor) -> None:
    before = chain(x)
    assert len(cached(chain)) == 5
    weights = chain.backbone.state_dict()
    for key in weights:
        if key.endswith("attention_biases"):
            weights[key] = 3 * torch.randn_like(weights[key])
    chain.backbone.load_state_dict(weights)
    after = chain(x)
    assert not torch.allclose(after, before)
    chain.train().eval()  # what timm itself needs to notice
    assert torch.equal(chain(x), after)


def test_gradients_reach_the_biases_in_evaluation_mode(chain: Chain, x: Tensor) -> None:
    with torch.inference_mode():
        chain(x)
    grads = []
    for _ in range(2):
        chain.zero_grad()
        chain(x).sum().backward()
        grads.append([p.grad for n, p in chain.named_parameters() if "attention_biases" in n])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0][1:])
    assert not cached(chain)


@torch.no_grad()
def test_biases_are_expanded_once_for_inference(chain: Chain, x: Tensor) -> None:
    chain(x)
    held = cached(chain)
    chain(x)
    assert len(held) == 5
    assert all(a is b for a, b in zip(held, cached(chain), strict=True))


def test_a_copy_leaves_the_graph_behind(chain: Chain, x: Tensor) -> None:
    model = offramp.create(chain.backbone, exits="linear", at=[2])
    chain.train().eval()  # nothing held yet
    expected = chain.backbone(x)  # with gradients, past the chain's own steps
    assert all(bias.grad_fn is not None for bias in cached(chain))
    twin = copy.deepcopy(model)
    assert torch.equal(twin.backbone(x), expected)
    chain.backbone(x)
    runner = offramp.compile(model, active=())
    torch.testing.assert_close(runner(x).logits, expected)


@torch.no_grad()
def test_a_trace_leaves_nothing_behind(chain: Chain, x: Tensor) -> None:
    expected = chain(x)
    for _ in range(2):  # with biases held before, and without
        program = torch.export.export(chain, (x,))
        assert all(type(bias) is Tensor for bias in cached(chain))
        assert torch.equal(chain(x), expected)
        torch.testing.assert_close(program.module()(x), expected)
        chain.train().eval()
