"""Evo-LeViT: published sizes and MACs, and what happens to tokens between stages."""

import pytest
import timm
import torch
from torch import Tensor

import offramp
from families import VARIANTS
from offramp.chains import Chain
from offramp.costs.macs import count_macs
from offramp.zoo.evo_levit import EvoBlock, EvoLevit, EvoSubsample

# parameters in M, MACs in M, MACs with everybody at work, at 224 and at 384 px
CARD = {
    "128s": ((7.84, 255.9, 312.1), (7.96, 824.7, 987.1)),
    "128": ((9.27, 304.9, 414.4), (9.39, 984.2, 1372.2)),
    "192": ((11.03, 510.1, 668.0), (11.21, 1654.3, 2220.8)),
    "256": ((19.01, 879.7, 1146.0), (19.24, 2763.2, 3674.3)),
    "384": ((39.30, 1848.6, 2390.4), (39.64, 5622.0, 7389.1)),
}


@pytest.mark.parametrize("name", CARD)
@pytest.mark.parametrize(("column", "pixels"), [(0, 224), (1, 384)])
def test_sizes_and_macs_are_the_cards(name: str, column: int, pixels: int) -> None:
    with torch.device("meta"):
        images = torch.zeros(1, 3, pixels, pixels)
        waiting, working = (
            timm.create_model(f"evo_levit_{name}", img_size=pixels, keep=keep).eval()
            for keep in (0.5, 1.0)
        )
        # one position table stands for the grid; what the blocks choose is not multiplied
        extra = represented(waiting)
        found = (
            sum(p.numel() for p in waiting.parameters()) / 1e6,
            (count_macs(waiting, images) - extra) / 1e6,
            count_macs(working, images) / 1e6,
        )
    assert found == pytest.approx(CARD[name][column], abs=0.051)
    assert found[0] == pytest.approx(CARD[name][column][0], abs=0.0051)


def represented(model: EvoLevit) -> int:
    """MACs of the representative tokens, which the card leaves out."""
    total = 0
    for step, width, grid in zip(model.steps, model.widths, model.grids, strict=True):
        if isinstance(step, EvoBlock) and step.opens and step.n is not None:
            total += (grid[0] * grid[1] - step.n) * width
    return total


@pytest.fixture
def chain() -> Chain:
    return offramp.chain(VARIANTS["evo levit"].make())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 80, 80, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_subsampling_restores_the_raster_and_keeps_the_sum_of_scores(
    chain: Chain, x: Tensor
) -> None:
    state = chain.embed(x)
    for i, step in enumerate(chain.steps):
        before, state = state, step(*state)
        n = state[2].shape[1]
        assert torch.equal(state[3].sort(1).values, torch.arange(n).expand(3, -1))
        if isinstance(step, EvoSubsample):
            assert torch.equal(state[3], torch.arange(n).expand(3, -1))
            assert state[1].shape[1] == 0
            assert state[0].shape[1] == n + 1  # the representative token stays behind
            torch.testing.assert_close(state[2].sum(1), before[2].sum(1))
        rows, columns = chain.token_spec(i).grid
        assert n == rows * columns


@torch.no_grad()
def test_order_does_not_matter_to_the_subsampling(chain: Chain, x: Tensor) -> None:
    state = chain.embed(x)
    for step in chain.steps[:2]:  # the unpruned blocks
        state = step(*state)
    shuffle = torch.stack([torch.randperm(25) for _ in range(3)])
    pick = shuffle.unsqueeze(-1).expand(-1, -1, state[0].shape[-1])
    mixed = (
        torch.cat((state[0][:, :1], state[0][:, 1:].gather(1, pick)), 1),
        state[1],
        state[2].gather(1, shuffle),
        state[3].gather(1, shuffle),
        state[4],
    )
    assert torch.equal(chain.tokens(mixed, 1).patches, chain.tokens(state, 1).patches)
    for one, other in zip(chain.steps[3](*mixed), chain.steps[3](*state), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_placeholders_of_a_stage_move_together(chain: Chain, x: Tensor) -> None:
    state = chain.embed(x)
    for step in chain.steps[:2]:
        state = step(*state)
    before = chain.tokens(state, 1).patches
    state = chain.steps[2](*state)
    waiting = state[3][:, 12:].unsqueeze(-1).expand(-1, -1, 32)
    moved = (chain.tokens(state, 2).patches - before).gather(1, waiting)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-5, rtol=1e-4)
    assert state[0].shape[1] == 1 + 12 + 1


def test_gradient_reaches_the_tradeoffs_ahead_of_a_selection(x: Tensor) -> None:
    model: EvoLevit = timm.create_model(
        "evo_levit_128s",
        num_classes=5,
        img_size=80,
        embed_dim=(32, 48, 64),
        key_dim=8,
        num_heads=(2, 3, 4),
        depth=(3, 2, 1),
        auxiliary=True,
    )
    for module in model.modules():  # as built, residual branches are zero
        if isinstance(module, torch.nn.BatchNorm1d):
            module.weight.data.fill_(1.0)
    state = model.embed(x)
    for step in model.steps:
        state = step(*state)
    answers = model.answers(*state)
    assert [tuple(said.shape) for said in answers] == [(3, 5)] * 4
    sum(said.square().sum() for said in answers).backward()
    reached = [
        bool(step.attn.tradeoff.grad is not None and step.attn.tradeoff.grad.abs() > 0)
        for step in model.steps
    ]
    #      block 0: nothing to blend with; the last selection of a stage reads no later score
    assert reached == [False, True, True, True, True, True, True, False]


@torch.no_grad()
def test_layers_select_more_often_than_stages(chain: Chain, x: Tensor) -> None:
    model = chain.backbone
    stages = model(x)
    model.select_by("layer")
    layers = model(x)
    model.select_by("stage")
    assert not torch.allclose(stages, layers)
    assert torch.equal(model(x), stages)
