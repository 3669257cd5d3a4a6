"""CrossViT's chains: two branches in one state, heads on the large one."""

import pytest
import torch

import offramp
from families import VARIANTS, from_timm
from offramp.chains.crossvit import FusionStep, LargeStep, SmallStep
from offramp.errors import OfframpError


@pytest.mark.parametrize(
    ("name", "steps", "width", "side"),
    [
        ("crossvit_9_240", 15, 256, 14),
        ("crossvit_15_240", 21, 384, 14),
        ("crossvit_18_dagger_408", 24, 448, 24),
        ("crossvit_tiny_240", 18, 192, 14),
    ],
)
def test_published_members(name: str, steps: int, width: int, side: int) -> None:
    with torch.device("meta"):
        chain = offramp.chain(from_timm(name)())
    assert len(chain) == steps
    assert {chain.token_spec(i)[:3] for i in range(steps)} == {(width, (side, side), 1)}
    assert [type(step) for step in chain.steps].count(FusionStep) == 3
    assert chain.classifier_heads == 2


@pytest.mark.parametrize("name", ["crossvit", "crossvit dagger"])
@torch.no_grad()
def test_each_step_touches_what_it_says(name: str) -> None:
    chain = offramp.chain(VARIANTS[name].make())
    kinds = [LargeStep, LargeStep, SmallStep, FusionStep] * 2
    assert [type(step) for step in chain.steps] == kinds
    small, large = chain.embed(torch.randn(2, 3, 60, 60))
    assert small.shape == (2, 26, 24)
    assert large.shape == (2, 10, 48)
    for i, step in enumerate(chain.steps):
        new_small, new_large = step(small, large)
        assert torch.equal(new_small, small) is isinstance(step, LargeStep)
        assert torch.equal(new_large, large) is isinstance(step, SmallStep)
        if isinstance(step, FusionStep):
            assert torch.equal(new_small[:, 1:], small[:, 1:])
            assert torch.equal(new_large[:, 1:], large[:, 1:])
        small, large = new_small, new_large
        tokens = chain.tokens((small, large), i)
        assert torch.equal(tokens.patches, large[:, 1:])
        assert torch.equal(tokens.classes, large[:, :1])


@torch.no_grad()
def test_fusions_end_with_timms_maps() -> None:
    chain = offramp.chain(VARIANTS["crossvit"].make())
    x = torch.randn(2, 3, 60, 60)
    _, maps = chain.backbone.forward_intermediates(x)  # small branch's two, large branch's two
    state, ends = chain.embed(x), {3: 2, 7: 3}
    for i, step in enumerate(chain.steps):
        state = step(*state)
        if i in ends:
            expected = maps[ends[i]].flatten(2).transpose(1, 2)
            assert torch.equal(chain.tokens(state, i).patches, expected)


@torch.no_grad()
def test_the_final_norm_can_be_left_out() -> None:
    chain = offramp.chain(VARIANTS["crossvit"].make())
    state = torch.randn(2, 26, 24), torch.randn(2, 10, 48)
    normed = [norm(x) for norm, x in zip(chain.backbone.norm, state, strict=True)]
    assert torch.equal(chain.finish(*state), chain.classify(*normed))
    assert not torch.allclose(chain.finish(*state), chain.classify(*state))


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(OfframpError, match=r"= \(240, 240\), but .* built for \(60, 60\)"):
        offramp.chain(VARIANTS["crossvit"].make(), image_size=240)


def test_exits_do_not_stand_behind_small_steps_by_default() -> None:
    """A head there would read what it could have read before the step."""
    for name in ("crossvit_9_240", "crossvit_18_dagger_240"):
        with torch.device("meta"):
            model = offramp.create(from_timm(name)(), exits="linear")
        steps = [model.chain.steps[p - 1] for p in model.positions]
        assert not any(isinstance(step, SmallStep) for step in steps)
