"""ToMe's invariants: sizes, sources, protected tokens, proportional attention."""

import pytest
import torch
from reduced_models import noise, reduced_chain, reduced_model

from offramp.reducers.block import attend, log_size
from offramp.reducers.matching import bipartite_soft_matching, destinations, follow, merge, room
from offramp.reducers.tome import schedule


def dense(matching, T: int, prefix: int) -> torch.Tensor:
    """The merge as a matrix of zeros and ones (B, T − r, T), written down slowly."""
    where = destinations(matching, T, prefix)
    rows = T - matching.merged.shape[1]
    source = torch.zeros(len(where), rows, T)
    for b in range(len(where)):
        for t in range(T):
            source[b, where[b, t], t] = 1
    return source


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("T", [16, 17, 18])
def test_merging_is_a_size_weighted_mean_over_sources(T: int, prefix: int) -> None:
    torch.manual_seed(0)
    x, size = torch.randn(3, T, 8), torch.randint(1, 5, (3, T)).float()
    for r in (1, 3, room(T, prefix)):
        found = bipartite_soft_matching(torch.randn(3, T, 4), r, prefix)
        merged, sizes = merge(x, size, found, prefix)
        source = dense(found, T, prefix)
        assert merged.shape == (3, T - r, 8)
        torch.testing.assert_close(source.sum(1), torch.ones(3, T))
        torch.testing.assert_close(sizes, (source @ size.unsqueeze(-1)).squeeze(-1))
        expected = source @ (x * size.unsqueeze(-1)) / sizes.unsqueeze(-1)
        torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(merged[:, :prefix], x[:, :prefix])
        assert torch.equal(sizes[:, :prefix], size[:, :prefix])


def test_the_most_similar_pairs_merge() -> None:
    metric = torch.eye(9).expand(2, -1, -1).clone()
    metric[:, 4] = metric[:, 1]  # a source and a target alike
    metric[1, 8] = metric[1, 3]
    found = bipartite_soft_matching(metric, 1, 1)
    assert found.merged[0].tolist() == [4]
    both = bipartite_soft_matching(metric[1:], 2, 1)
    assert sorted(both.merged[0].tolist()) == [4, 8]
    assert {int(m): int(p) for m, p in zip(both.merged[0], both.partner[0], strict=True)} == {
        4: 0,
        8: 1,
    }


def test_kept_tokens_keep_their_order() -> None:
    torch.manual_seed(1)
    found = bipartite_soft_matching(torch.randn(4, 20, 6), 4, 1)
    assert (found.kept.diff(dim=1) > 0).all()


def test_followed_places_equal_composed_sources() -> None:
    torch.manual_seed(2)
    T, place, total = 17, torch.arange(17).expand(2, -1), None
    for r in (3, 5, 2):
        found = bipartite_soft_matching(torch.randn(2, T, 6), r, 1)
        place = follow(place, destinations(found, T, 1), T - r)
        source = dense(found, T, 1)
        total = source if total is None else source @ total
        T -= r
    assert total is not None
    expected = total.argmax(1)
    assert torch.equal(place, expected)


@torch.no_grad()
def test_sizes_add_up_and_the_class_token_stays_alone() -> None:
    chain = reduced_chain({"name": "tome", "r": 3})
    state = chain.embed(noise())
    for i, step in enumerate(chain.steps):
        state = step(*state)
        assert state[0].shape[1] == state[1].shape[1] == 17 - 3 * (i + 1)
        assert torch.equal(state[1].sum(1), torch.full((3,), 17.0))
        assert torch.equal(state[1][:, 0], torch.ones(3))


@torch.no_grad()
def test_proportional_attention_is_a_key_repeated() -> None:
    block = reduced_model(None).backbone.blocks[0]
    x, size = torch.randn(2, 6, 48), torch.tensor([1.0, 3, 1, 2, 1, 1]).expand(2, -1)
    repeated = x.repeat_interleave(size[0].long(), 1)
    first = torch.tensor([0, 1, 4, 5, 7, 8])
    weighed = attend(block, x, log_size(size, x)).branch
    torch.testing.assert_close(
        weighed, attend(block, repeated).branch[:, first], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_merging_duplicates_changes_nothing_for_the_others() -> None:
    block = reduced_model(None).backbone.blocks[0]
    x = torch.randn(1, 9, 48)
    x[:, 4], x[:, 6] = x[:, 1], x[:, 3]
    found = bipartite_soft_matching(x, 2, 1)
    assert sorted(found.merged[0].tolist()) == [4, 6]
    merged, size = merge(x, torch.ones(1, 9), found, 1)
    where = destinations(found, 9, 1)[0]
    after = attend(block, merged, log_size(size, merged)).branch[:, where]
    torch.testing.assert_close(after, attend(block, x).branch, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_restored_map_holds_each_patchs_token() -> None:
    """Position ids as features: a patch finds the mean id of those it was merged with."""
    chain = reduced_chain({"name": "tome", "r": 4, "restore": True})
    state = chain.embed(noise())
    for i, step in enumerate(chain.steps):
        state = step(*state)
        x, size, place = state
        tokens = chain.tokens(state, i)
        assert tokens.grid == (4, 4)
        for b in range(3):
            counts = torch.bincount(place[b], minlength=x.shape[1])
            assert torch.equal(counts[1:].float(), size[b, 1:])
            assert torch.equal(tokens.patches[b], x[b, place[b]])


@pytest.mark.parametrize(
    ("r", "slope", "expected"),
    [
        (8, 0.0, [8] * 12),
        (8, -1.0, [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]),
        (4, 1.0, [0, 0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8]),
        ([3, 2], 0.0, [3, 2] + [0] * 10),
    ],
)
def test_schedules(r: object, slope: float, expected: list[int]) -> None:
    assert schedule(r, slope, 12) == expected


def test_a_mean_pooled_model_weighs_by_size() -> None:
    chain = reduced_chain(
        {"name": "tome", "r": 3}, name="vit_tiny_patch16_224", class_token=False, global_pool="avg"
    )
    x = torch.randn(2, 16, 48)
    x[:, 1] = x[:, 0]
    whole = chain.base.finish(x)
    size = torch.ones(2, 15)
    size[:, 0] = 2
    torch.testing.assert_close(chain.finish(x[:, [0, *range(2, 16)]], size), whole)


@torch.no_grad()
def test_heads_weigh_the_mean_by_size_too() -> None:
    chain = reduced_chain({"name": "tome", "r": 4})
    state = chain.steps[0](*chain.embed(noise()))
    view, size = chain.tokens(state, 0), state[1][:, 1:]
    assert view.size is not None
    expected = (view.patches * size.unsqueeze(-1)).sum(1, keepdim=True) / 16
    torch.testing.assert_close(view.mean, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(view.summary.patches, view.mean)
