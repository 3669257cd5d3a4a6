"""Families whose maps shrink: the cards' numbers, timm's own intermediates, sizes they take."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import offramp
from families import VARIANTS
from offramp.chains import Chain
from offramp.chains.byobnet import Patching
from offramp.chains.hiera import HieraChain
from offramp.costs import count_macs
from offramp.errors import OfframpError

# name → parameters, G multiply-accumulates at the published size, steps
PUBLISHED = {
    "efficientnet_b0": (5_288_548, 0.386, 16),
    "efficientnet_b3": (12_233_232, 1.589, 26),
    "mobilevit_s": (5_578_632, 2.001, 19),
    "mobilevitv2_100": (4_901_841, 1.812, 9),
    "twins_pcpvt_small": (24_106_216, 3.809, 16),
    "twins_svt_small": (24_060_776, 2.927, 18),
    "pvt_v2_b0": (3_666_760, 0.566, 8),
    "convnext_tiny": (28_589_128, 4.456, 18),
    "hiera_tiny_224": (27_910_216, 4.901, 12),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_parameters_macs_and_steps(name: str) -> None:
    parameters, giga, steps = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    chain = offramp.chain(model)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(chain) == steps
    images = torch.empty(1, 3, *chain.image_size, device="meta")
    assert count_macs(chain, images) == count_macs(model, images)
    assert count_macs(chain, images) / 1e9 == pytest.approx(giga, abs=6e-4)


def test_grids_at_the_published_size() -> None:
    """MobileViT-S at 256: 3 × (4096, 64), then inside its first block 144 channels on 32 × 32."""
    with torch.device("meta"):
        chain = offramp.chain(timm.create_model("mobilevit_s"))
    shapes = [(spec.patches, spec.width) for spec in map(chain.token_spec, range(len(chain)))]
    assert shapes[:8] == [
        (16384, 32),
        *[(4096, 64)] * 3,
        (1024, 96),
        *[(1024, 144)] * 2,
        (1024, 96),
    ]
    assert shapes[8:14] == [(256, 128), *[(256, 192)] * 4, (256, 128)]
    assert shapes[14:] == [(64, 160), *[(64, 240)] * 3, (64, 160)]


# variant → what timm's forward_intermediates is told, and the 0-based steps its maps follow
INTERMEDIATES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "efficientnet": ({"extra_blocks": True, "indices": [1, 2, 3, 4, 5]}, [0, 1, 2, 3, 4]),
    "mobilenet v3": (
        {"extra_blocks": True, "indices": [1, 2, 3, 4, 5, 6]},
        [0, 2, 5, 7, 10, 11],
    ),
    "mobilevit": ({"exclude_final_conv": True}, [0, 3, 7, 13, 18]),
    "mobilevit v2": ({}, [0, 2, 4, 6, 8]),
    "convnext": ({}, [0, 1, 3, 4]),
    "pvt v2": ({}, [1, 2, 3, 5]),
    "pvt v2 linear": ({}, [1, 2, 3, 5]),
    "twins svt": ({}, [1, 3, 5, 7]),
    "twins pcpvt": ({}, [1, 3, 5, 7]),
    "hiera": ({"coarse": False}, [0, 1, 2, 3, 4, 5]),
    "hiera oblong": ({"coarse": False}, [0, 1, 2, 3, 4, 5]),
}


def walk(name: str) -> tuple[Any, Chain, Tensor, list[tuple[Tensor, ...]]]:
    """The variant's model and chain, images, and the state after every step."""
    model, size = VARIANTS[name].make(), VARIANTS[name].image_size
    chain = offramp.chain(model, image_size=size)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    states = [chain.embed(images)]
    for step in chain.steps:
        states.append(step(*states[-1]))
    return model, chain, images, states[1:]


@pytest.mark.parametrize("name", INTERMEDIATES)
@torch.no_grad()
def test_tokens_are_the_maps_timm_gives_out(name: str) -> None:
    model, chain, images, states = walk(name)
    arguments, steps = INTERMEDIATES[name]
    maps = model.forward_intermediates(images, intermediates_only=True, **arguments)
    assert len(maps) == len(steps)
    for expected, step in zip(maps, steps, strict=True):
        tokens = chain.tokens(states[step], step)
        assert tokens.grid == expected.shape[2:]
        assert torch.equal(tokens.patches, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (3, 3)])
def test_patches_are_put_back_where_they_were(size: tuple[int, int]) -> None:
    cut = Patching(size, (2, 2))
    maps = torch.randn(3, 5, *cut.grid)
    tokens = Patching(cut.grid, (2, 2)).unfold(maps)
    assert cut.grid == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert tokens.shape == (3, 4, maps[0, 0].numel() // 4, 5)
    assert torch.equal(tokens[1, 2, 1], maps[1, :, 1, 2])  # third pixel of the second patch
    assert torch.equal(cut.fold(tokens), maps)


@torch.no_grad()
def test_inside_a_mobilevit_block_the_map_has_been_seen_by_the_transformer() -> None:
    """There a pixel sees those at its own place in the other patches, and no others."""
    _, chain, _, states = walk("mobilevit")
    x, shortcut = states[5]  # behind the first transformer block, 6 × 8 pixels
    assert x.shape == (2, 4, 12, 64)
    other = x.clone()
    other[0, 3, 5] += torch.randn(64)  # last pixel of the patch in row 1, column 1 of patches
    moved = chain.tokens((other, shortcut), 5).patches != chain.tokens(states[5], 5).patches
    assert moved[0].any(-1).nonzero().flatten().tolist() == [3 * 8 + 3]
    after = chain.tokens(chain.steps[6](other, shortcut), 6).patches
    changed = after != chain.tokens(states[6], 6).patches
    assert not changed[1].any()
    rows, columns = changed[0].any(-1).unflatten(0, (6, 8)).nonzero().unbind(1)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (row, column) for row in (1, 3, 5) for column in (1, 3, 5, 7)
    }


def test_shortcuts_are_open_inside_mobilevit_blocks_only() -> None:
    states = walk("mobilevit")[-1]
    shapes = [tuple(shortcut.shape[1:]) for _, shortcut in states]
    closed = (1, 1, 1)
    assert shapes[:8] == [closed] * 5 + [(48, 6, 8)] * 2 + [closed]


@pytest.mark.parametrize(
    ("name", "image_size", "said"),
    [
        ("hiera_tiny_224", 100, r"windows of \(32, 32\) pixels, which do not divide \(100, 100\)"),
        ("twins_svt_small", 100, r"twins_svt_small cannot be built with .*'img_size': 100"),
        ("convnext_atto", 16, r"ConvNeXt cannot take images of \(16, 16\)"),
        ("pvt_v2_b0", 16, r"PyramidVisionTransformerV2 cannot take images of \(16, 16\)"),
        ("halonet26t", 72, r"ByobNet cannot take images of \(72, 72\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, image_size: int, said: str) -> None:
    with torch.device("meta"), pytest.raises(OfframpError, match=said):
        offramp.create(name, exits="linear", image_size=image_size)


@torch.no_grad()
def test_hiera_resamples_positions_by_products_when_it_is_exported() -> None:
    model, chain, images, _ = walk("hiera oblong")
    assert isinstance(chain, HieraChain)
    expected = model._pos_embed(torch.zeros(1, 16 * 24, 16))
    torch.testing.assert_close(chain._positions(), expected, atol=1e-6, rtol=1e-5)
    program = torch.export.export(chain, (images,))
    assert not any("bicubic" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(images), model(images), atol=1e-5, rtol=1e-4)


def test_hiera_with_holes_is_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("hiera_tiny_224", patch_drop_rate=0.1)
    with pytest.raises(OfframpError, match=r"patch_drop_rate = 0\.1 leaves holes"):
        offramp.chain(model)


def test_a_network_without_a_published_size_needs_one() -> None:
    model = VARIANTS["convnext"].make()
    model.pretrained_cfg = None
    with pytest.raises(OfframpError, match="accepts any image size: say which with image_size="):
        offramp.chain(model)
    assert offramp.chain(model, image_size=32).image_size == (32, 32)


@torch.no_grad()
def test_heads_of_the_last_attention_are_known() -> None:
    heads = {name: offramp.chain(VARIANTS[name].make()).attention_heads for name in INTERMEDIATES}
    assert heads["mobilevit"] == heads["twins svt"] == heads["pvt v2"] == 4
    assert heads["hiera"] == 8
    assert heads["efficientnet"] == heads["mobilevit v2"] == heads["convnext"] == 1
