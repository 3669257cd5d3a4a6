"""SL-ViT's branch."""

import pytest
import torch
from torch import nn

from offramp.chains import Tokens, TokenSpec
from offramp.costs import count_macs
from offramp.errors import OfframpError
from offramp.exits import build_exit
from offramp.exits.sl_vit import SLViT


def branch(spec: TokenSpec, **options: object) -> SLViT:
    built = build_exit("sl_vit", spec, 7, options).eval()
    assert isinstance(built, SLViT)
    return built


@pytest.mark.parametrize(
    ("grid", "patch", "n"), [((8, 6), 1, 48), ((8, 6), 2, 12), ((7, 5), 2, 12), ((7, 5), 3, 6)]
)
def test_sizes(grid: tuple[int, int], patch: int, n: int) -> None:
    D, d = 40, 24
    view = Tokens(torch.randn(2, grid[0] * grid[1], D), grid, torch.zeros(2, 0, D))
    for pool, extra in (("class", 1), ("mean", 0)):
        built = branch(TokenSpec(D, grid), patch=patch, width=d, heads=3, ratio=2.0, pool=pool)
        positions = (n + 2 * extra) * d  # and the class token
        embed, block = patch**2 * D * d + d, 4 * d * d + 4 * d + 4 * d * d + 3 * d + 4 * d
        expected = embed + positions + block + 2 * d + 7 * d + 7
        assert sum(p.numel() for p in built.parameters()) == expected
        t = n + extra
        macs = patch**2 * D * d * n + 8 * d * d * t + 2 * t * t * d + 7 * d
        one = Tokens(view.patches[:1], grid, view.prefix[:1])
        assert count_macs(built, one) == macs
        assert built(view)[0].logits.shape == (2, 7)


def test_what_patches_do_not_fill_is_padded_with_zeros() -> None:
    built = branch(TokenSpec(3, (3, 5)), patch=2, width=8)
    nn.init.zeros_(built.positions)
    nn.init.ones_(built.embed.weight)
    x = built.sequence(Tokens(torch.ones(1, 15, 3), (3, 5), torch.zeros(1, 0, 3)))
    full, side, corner = 4 * 3.0, 2 * 3.0, 3.0
    assert x[0, 1:, 0].tolist() == [full, full, side, side, side, corner]


def test_the_branch_reads_no_class_token_of_the_backbone() -> None:
    built = branch(TokenSpec(16, (4, 4), 1), width=24)
    patches = torch.randn(2, 16, 16)
    first, second = (
        built(Tokens(patches, (4, 4), torch.randn(2, 1, 16), 1))[0].logits for _ in range(2)
    )
    assert torch.equal(first, second)


def test_position_matters() -> None:
    built = branch(TokenSpec(16, (4, 4)), width=24)
    nn.init.normal_(built.positions)
    patches = torch.randn(2, 16, 16)
    answers = [built(Tokens(p, (4, 4), p[:, :0]))[0].logits for p in (patches, patches.flip(1))]
    assert not torch.allclose(*answers)


@pytest.mark.parametrize(
    ("grid", "options", "sentence"),
    [
        (None, {}, "sl_vit needs tokens on a grid"),
        ((4, 6), {"patch": 7}, "patch = 7, but the grid is 4 × 6 .use 1…6"),
        ((4, 6), {"patch": 0}, "patch = 0"),
        ((4, 6), {"width": 30, "heads": 4}, "heads = 4 does not divide the token width 30"),
    ],
)
def test_refusals(grid: tuple[int, int] | None, options: dict, sentence: str) -> None:
    with pytest.raises(OfframpError, match=sentence):
        build_exit("sl_vit", TokenSpec(16, grid), 7, options)
