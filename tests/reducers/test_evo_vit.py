"""Evo-ViT's invariants: ranking, bookkeeping, placeholders, the representative token."""

import pytest
import torch
from reduced_models import noise, reduced_chain
from torch import Tensor

from offramp.chains.reduced import ReducedChain
from offramp.chains.slow_fast import select
from offramp.reducers.block import attend, class_row

DEEP = {"name": "evo_vit", "start": 3, "every": 2}  # selections ahead of blocks 3 and 5 of 6


def deep(**options: object) -> ReducedChain:
    return reduced_chain(DEEP | options, depth=6)


@torch.no_grad()
def walk(chain: ReducedChain, images: Tensor) -> list[tuple[Tensor, ...]]:
    states = [chain.embed(images)]
    for step in chain.steps:
        states.append(step(*states[-1]))
    return states


@pytest.mark.parametrize("selection", ["stage", "layer"])
def test_order_is_a_permutation_that_restores_the_raster(selection: str) -> None:
    chain = deep(selection=selection)
    for state in walk(chain, noise())[1:]:
        order = state[3]
        assert torch.equal(order.sort(1).values, torch.arange(16).expand(3, -1))
    state = list(walk(chain, noise())[-1])
    ids = state[3].float().unsqueeze(-1).expand(-1, -1, 48)  # each token carries its own position
    state[0] = torch.cat((state[0][:, :1], ids[:, :8]), 1)
    state[1] = ids[:, 8:]
    raster = chain.tokens(tuple(state), 5).patches[..., 0]
    assert torch.equal(raster, torch.arange(16.0).expand(3, -1))


def test_placeholders_wait_unchanged() -> None:
    chain = deep()
    states = walk(chain, noise())
    before = chain.tokens(states[2], 1).patches  # after block 2, ahead of the first selection
    after = chain.tokens(states[6], 5).patches
    chosen = torch.zeros(3, 16, dtype=torch.bool)
    for state in (states[3], states[5]):
        chosen |= torch.zeros(3, 16, dtype=torch.bool).scatter(1, state[3][:, :8], True)
    assert (~chosen).any()
    assert torch.equal(after[~chosen], before[~chosen])
    assert not torch.isclose(after[chosen], before[chosen]).all(-1).any()


def test_with_the_fast_path_placeholders_move_together() -> None:
    chain = deep(fast=True)
    states = walk(chain, noise())
    assert states[3][0].shape[1] == 1 + 8 + 1
    before, after = (chain.tokens(states[k], k - 1).patches for k in (2, 4))
    waiting = states[4][3][:, 8:]
    pick = waiting.unsqueeze(-1).expand(-1, -1, 48)
    moved = after.gather(1, pick) - before.gather(1, pick)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=2e-5, rtol=1e-4)
    assert (moved.abs().amax((1, 2)) > 1e-3).all()
    mean = chain.tokens(states[6], 5).patches.mean(1)
    torch.testing.assert_close(chain.reducer.mean(states[6]), mean, atol=1e-5, rtol=1e-4)


def test_the_representative_token_is_a_mean_of_placeholders() -> None:
    chain = deep(fast=True)
    state = walk(chain, noise())[2]
    with torch.no_grad():
        x, rest, score, _, moved = select(state, 1, 8)
        weights = score[:, 8:] / score[:, 8:].sum(1, keepdim=True)
        torch.testing.assert_close(x[:, -1], (weights.unsqueeze(-1) * rest).sum(1))
        assert not moved.any()
        same = torch.cat((state[0][:, :1], state[0][:, 1:2].expand(-1, 16, -1)), 1)
        alike = select((same, *state[1:]), 1, 8)[0]
        torch.testing.assert_close(alike[:, -1], same[:, 1])


def test_scores_are_class_attention_and_waiting_ones_keep_theirs() -> None:
    chain = deep(alpha=0.25)
    states = walk(chain, noise())
    with torch.no_grad():
        row = class_row(attend(chain.backbone.blocks[1], states[1][0])).sum(1)[:, 1:]
        assert torch.equal(states[2][2], row)  # t = 1: block 2's own attention
        assert (row.sum(1) <= 3).all()
        order = row.argsort(1, descending=True)
        assert torch.equal(states[3][3], order)
        chosen = select(states[2], 1, 8)
        fresh = class_row(attend(chain.backbone.blocks[2], chosen[0])).sum(1)[:, 1:9]
        old = row.gather(1, order)
        torch.testing.assert_close(states[3][2][:, :8], 0.25 * old[:, :8] + 0.75 * fresh)
        assert torch.equal(states[3][2][:, 8:], old[:, 8:])


def test_without_new_scores_layers_select_like_stages() -> None:
    frozen = deep(alpha=1.0)  # t = 0 from the first selection on
    layers = deep(alpha=1.0, selection="layer")
    layers.load_state_dict(frozen.state_dict())
    stages = walk(frozen, noise())
    assert torch.equal(stages[3][3][:, :8].sort(1).values, stages[5][3][:, :8].sort(1).values)
    with torch.no_grad():
        torch.testing.assert_close(frozen(noise()), layers(noise()), atol=1e-5, rtol=1e-4)
    fresh, fresh_layers = deep(), deep(selection="layer", start=2)
    with torch.no_grad():
        assert not torch.allclose(fresh(noise()), fresh_layers(noise()))


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({}, [1, 2, 3]),
        ({"selection": "layer"}, [1, 2, 3, 4]),
        ({"every": 9}, [1]),
        ({"keep": 1.0}, []),
    ],
)
def test_only_scores_that_are_read_later_are_computed(
    options: dict[str, object], scored: list[int]
) -> None:
    assert deep(**options).reducer.scored == scored


def test_training_and_evaluation_take_the_same_path() -> None:
    chain = deep(fast=True)
    with torch.no_grad():
        evaluated = chain(noise())
        assert torch.equal(chain.train()(noise()), evaluated)


def test_the_average_head_starts_as_the_class_tokens() -> None:
    chain = reduced_chain({"name": "evo_vit", "keep": 1.0})
    model = chain.backbone
    chain.reducer.head.load_state_dict(model.head.state_dict())
    chain.reducer.norm.load_state_dict(model.norm.state_dict())
    state = walk(chain, noise())[-1]
    with torch.no_grad():
        assert torch.equal(chain.reducer.auxiliary(chain.base, *state), chain.whole(noise()))
        mean = state[0][:, 1:].mean(1)
        torch.testing.assert_close(chain.finish(*state), model.head(model.norm(mean)))


def test_no_gradient_reaches_the_ranking() -> None:
    chain = deep().train()
    state = chain.steps[1](*chain.steps[0](*chain.embed(noise())))
    score = state[2].detach().requires_grad_()
    state = (*state[:2], score, state[3])
    for step in chain.steps[2:]:
        state = step(*state)
    chain.finish(*state).sum().backward()
    assert score.grad is None
