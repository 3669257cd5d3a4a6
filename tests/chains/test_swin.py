"""Swin's chains: stage by stage the published maps, merging inside the next stage's first step."""

import pytest
import torch

import offramp
from families import SWIN, VARIANTS, from_timm
from offramp.chains.swin import SwinChain, SwinCrChain, SwinStep
from offramp.errors import OfframpError


@pytest.mark.parametrize(
    ("name", "depths", "widths"),
    [
        ("swin_tiny_patch4_window7_224", (2, 2, 6, 2), (96, 192, 384, 768)),
        ("swin_base_patch4_window7_224", (2, 2, 18, 2), (128, 256, 512, 1024)),
        ("swinv2_cr_small_224", (2, 2, 18, 2), (96, 192, 384, 768)),
        ("swinv2_small_window8_256", (2, 2, 18, 2), (96, 192, 384, 768)),
    ],
)
def test_published_members_have_the_published_maps(
    name: str, depths: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        chain = offramp.chain(from_timm(name)())
    first = chain.image_size[0] // 4
    expected = [
        (width, (first >> stage, first >> stage))
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True))
        for _ in range(depth)
    ]
    assert [chain.token_spec(i)[:2] for i in range(len(chain))] == expected


@pytest.mark.parametrize("name", ["swin", "swin v2", "swin v2-cr"])
def test_merging_runs_in_the_first_step_of_a_stage(name: str) -> None:
    chain = offramp.chain(VARIANTS[name].make())
    merging = [isinstance(s, SwinStep) and s.merge is not None for s in chain.steps]
    assert merging == [False, False, True, True, False, True]
    assert chain.attention_heads == 8
    shifts = [any(step.block.shift_size) for step in chain.steps]
    assert shifts == [False, True, False, False, False, False]


@pytest.mark.parametrize("name", ["swin", "swin v2", "swin v2-cr", "swin uneven"])
@torch.no_grad()
def test_stages_end_with_timms_maps(name: str) -> None:
    chain = offramp.chain(VARIANTS[name].make())
    x = torch.randn(2, 3, *chain.image_size)
    _, maps = chain.backbone.forward_intermediates(x)
    state, ends = chain.embed(x), {1: 0, 2: 1, 4: 2, 5: 3}
    for i, step in enumerate(chain.steps):
        state = step(*state)
        if i in ends:
            expected = maps[ends[i]].flatten(2).transpose(1, 2)
            assert torch.equal(chain.tokens(state, i).patches, expected)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224"])
@torch.no_grad()
def test_a_model_for_any_size_takes_another(name: str) -> None:
    model = from_timm(name, **SWIN, strict_img_size=False)().eval()
    chain = offramp.chain(model, image_size=(48, 40))
    x = torch.randn(2, 3, 48, 40)
    assert torch.equal(chain(x), model(x))
    assert [chain.token_spec(i).grid for i in (0, 2, 3, 5)] == [(24, 20), (12, 10), (6, 5), (3, 3)]


def test_a_wrong_size_is_refused() -> None:
    model = VARIANTS["swin"].make()
    with pytest.raises(OfframpError, match=r"= \(64, 64\), but .* for \(32, 32\) .*strict_img"):
        offramp.chain(model, image_size=64)


@torch.no_grad()
def test_only_the_cr_form_has_no_final_norm_to_leave_out() -> None:
    chain = offramp.chain(VARIANTS["swin"].make())
    assert type(chain) is SwinChain
    x = torch.randn(2, 2, 2, 128)
    assert torch.equal(chain.finish(x), chain.classify(chain.backbone.norm(x)))
    assert not torch.allclose(chain.finish(x), chain.classify(x))
    chain = offramp.chain(VARIANTS["swin v2-cr"].make())
    assert type(chain) is SwinCrChain
    with pytest.raises(OfframpError, match="SwinTransformerV2Cr has no final norm"):
        chain.classify(x)
