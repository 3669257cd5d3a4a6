"""EViT's, DynamicViT's and DiffRate's invariants."""

from itertools import pairwise

import pytest
import torch
from reduced_models import noise, reduced_chain, reduced_model
from torch.nn import functional as F

from offramp.reducers import kept_tokens
from offramp.reducers.block import attend, class_row
from offramp.reducers.diffrate import absorb
from offramp.reducers.dynamicvit import masked_branch


@torch.no_grad()
def test_evit_keeps_the_best_attended_and_fuses_the_rest() -> None:
    chain = reduced_chain({"name": "evit", "keep": 0.5, "blocks": [2]})
    state = chain.steps[0](*chain.embed(noise()))
    block = chain.backbone.blocks[1]
    said = attend(block, state[0])
    x = state[0] + said.branch
    score = class_row(said).mean(1)[:, 1:]
    best = score.topk(8).indices
    others = torch.ones(3, 16, dtype=torch.bool).scatter(1, best, False)
    kept = x[:, 1:].gather(1, best.unsqueeze(-1).expand(-1, -1, 48))
    fused = (x[:, 1:] * (score * others).unsqueeze(-1)).sum(1, keepdim=True)
    expected = torch.cat((x[:, :1], kept, fused), 1)
    expected = expected + block.mlp(block.norm2(expected))
    found = chain.steps[1](*state)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert bool((score * others).sum(1).lt(1).all())  # raw weights: the fused token shrinks
    maps = kept_tokens(chain, noise())[1]
    assert torch.equal(maps.token == 8, others)
    assert not maps.gone.any()


@torch.no_grad()
def test_evit_without_fusion_partitions_the_patches() -> None:
    chain = reduced_chain({"name": "evit", "keep": 0.5, "fuse": False})
    for found, left in zip(kept_tokens(chain, noise()), (16, 8, 4, 2), strict=True):
        assert ((~found.gone).sum(1) == left).all()
        for b in range(3):
            alive = found.token[b][~found.gone[b]]
            assert sorted(alive.tolist()) == list(range(left))


def test_the_class_row_is_row_zero_of_full_attention() -> None:
    block = reduced_model(None).backbone.blocks[0]
    said = attend(block, torch.randn(2, 17, 48))
    full = (said.query @ said.key.transpose(-2, -1) * 16**-0.5).softmax(-1)
    torch.testing.assert_close(class_row(said), full[:, :, 0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_dynamicvit_masked_training_equals_gathered_inference() -> None:
    block = reduced_model(None).backbone.blocks[0]
    torch.manual_seed(0)
    x = torch.randn(2, 17, 48)
    there = torch.randperm(16)[:9].sort().values + 1
    kept = torch.cat((torch.tensor([0]), there))
    keep = torch.zeros(2, 17)
    keep[:, kept] = 1
    masked = masked_branch(block, x, keep)[:, kept]
    torch.testing.assert_close(masked, attend(block, x[:, kept]).branch, atol=1e-4, rtol=1e-3)


def test_dynamicvit_draws_bits_in_training_and_drops_in_evaluation() -> None:
    chain = reduced_chain({"name": "dynamicvit", "keep": 0.7})
    state, stages = chain.embed(noise()), []
    chain.train()
    for step in chain.steps:
        state = step(*state)
        assert state[0].shape[1] == 17
        stages.append(state[1])
    assert all(bool(((bits == 0) | (bits == 1)).all()) for bits in stages)
    assert all(bool((b <= a).all()) for a, b in pairwise(stages))
    stages[-1].mean().backward()
    first = chain.reducer.predictors[0].embed[1].weight
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    chain.eval()
    with torch.no_grad():
        state, lengths = chain.embed(noise()), []
        for step in chain.steps:
            state = step(*state)
            lengths.append(state[0].shape[1] - 1)
    assert lengths == [16, int(16 * 0.7), int(16 * 0.49), int(16 * 0.343)]


def test_diffrate_absorbs_into_the_most_similar_as_a_plain_mean() -> None:
    kept = F.normalize(torch.randn(1, 4, 6), dim=-1)
    rest = torch.stack([2 * kept[0, 2], 3 * kept[0, 2], kept[0, 0]]).unsqueeze(0)
    merged, grown, partner = absorb(kept, rest, torch.tensor([[1.0, 2.0, 1.0]]), 1)
    assert partner[0, :2].tolist() == [2, 2]
    assert int(partner[0, 2]) != 0  # never into the class token
    others = [t for t in (1, 3) if t != int(partner[0, 2])]
    torch.testing.assert_close(merged[0, others], kept[0, others])
    if int(partner[0, 2]) != 2:
        torch.testing.assert_close(merged[0, 2], kept[0, 2] * (1 + 2 + 3) / 3)
        assert grown[0, 2] == pytest.approx(3.0, abs=1e-5)
