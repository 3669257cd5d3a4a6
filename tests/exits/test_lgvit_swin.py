"""LGViT's heads on pyramids, against the numbers worked out for the released Swin model."""

from itertools import accumulate

import pytest
import torch

import offramp
from offramp.chains import Tokens, TokenSpec
from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.exits import build_exit, expand_layout
from offramp.exits.lgvit import GAH, LPH
from offramp.model import MultiExitModel

BLOCKS = [4, 7, 10, 13, 16, 19, 22, 23]


def swin_base(classes: int) -> MultiExitModel:
    with torch.device("meta"):
        return offramp.create(
            "swin_base_patch4_window7_224", exits="lgvit-swin", at=BLOCKS, num_classes=classes
        )


@pytest.fixture(scope="module")
def model() -> MultiExitModel:
    return swin_base(100)


def test_parameters_of_swin_base(model: MultiExitModel) -> None:
    counts = [sum(p.numel() for p in head.parameters()) for head in model.heads]
    assert counts == [
        161_892,
        585_828,
        579_684,
        579_684,
        1_101_412,
        1_101_412,
        1_101_412,
        4_299_876,
    ]
    assert model.parameter_counts() == {"backbone": 86_845_724, "exits": 9_511_200}
    assert swin_base(1000).parameter_counts() == {"backbone": 87_768_224, "exits": 13_435_200}


def test_macs_of_swin_base(model: MultiExitModel) -> None:
    costs = model_costs(model, form="train")
    assert costs.full / 1e9 == pytest.approx(15.43, abs=5e-3)
    heads = [head / 1e6 for head in costs.head[:-1]]
    expected = [104.6, 103.7, 102.8, 102.8, 244.9, 244.9, 53.9, 67.7]
    assert heads == pytest.approx(expected, abs=0.05)
    assert sum(heads) == pytest.approx(1025, abs=0.5)
    done = [cost / costs.full for cost in accumulate(costs.body[:-1])]
    assert done == pytest.approx([0.175, 0.304, 0.426, 0.547, 0.669, 0.791, 0.913, 0.960], abs=5e-4)


def test_layout_for_swin_converges_later_than_for_vit() -> None:
    specs = expand_layout("lgvit-swin", [1.0] * 24, at=BLOCKS)
    said = [f"{s.head} {s.options.get('kernel', s.options.get('ratio'))}" for s in specs]
    assert said == [*["lph 3"] * 2, *["lph 1"] * 2, *["gah 1"] * 2, *["gah 2"] * 2]
    assert all(spec.options["norm"] for spec in specs)
    assert [s.head for s in expand_layout("lgvit-swin", [1.0] * 4, count=1)] == ["lph"]


@pytest.mark.parametrize("name", ["lph", "gah"])
@pytest.mark.parametrize("class_tokens", [0, 1, 2])
@torch.no_grad()
def test_norm_stands_between_features_and_pooling(name: str, class_tokens: int) -> None:
    torch.manual_seed(0)
    head = build_exit(name, TokenSpec(16, (4, 4), class_tokens), 5, {"norm": True}).eval()
    assert isinstance(head, LPH | GAH)
    assert head.norm is not None
    assert head.norm.eps == 1e-5
    head.norm.weight.uniform_(0.5, 1.5)
    head.norm.bias.normal_()
    view = Tokens(torch.randn(2, 16, 16), (4, 4), torch.randn(2, class_tokens, 16), class_tokens)
    features = head.features(view)
    normed = (features - features.mean(-1, keepdim=True)) / torch.sqrt(
        features.var(-1, correction=0, keepdim=True) + 1e-5
    )
    pooled = (normed * head.norm.weight + head.norm.bias).mean(dim=1)
    answers = [
        layer(pooled + view.prefix[:, t] if class_tokens else pooled)
        for t, layer in enumerate(head.classifiers.heads)
    ]
    torch.testing.assert_close(head(view)[0].logits, torch.stack(answers).mean(0))


@pytest.mark.parametrize(
    ("width", "heads"), [(768, 8), (48, 8), (36, 6), (180, 6), (70, 7), (22, 2), (13, 1)]
)
def test_attention_heads_divide_the_width(width: int, heads: int) -> None:
    head = build_exit("gah", TokenSpec(width, (4, 4)), 5)
    assert isinstance(head, GAH)
    assert head.heads == heads
    said = head(Tokens(torch.randn(2, 16, width), (4, 4), torch.zeros(2, 0, width)))[0]
    assert said.logits.shape == (2, 5)
    if heads < 8:
        with pytest.raises(OfframpError, match=f"heads = 8 does not divide .* width {width}"):
            build_exit("gah", TokenSpec(width, (4, 4)), 5, {"heads": 8})


def test_heads_keep_their_parameters_without_norm() -> None:
    """Checkpoints written before there was a norm still load."""
    lph = build_exit("lph", TokenSpec(16, (4, 4), 1), 5)
    assert {k.split(".")[0] for k in lph.state_dict()} == {
        *("expand", "norm1", "depthwise", "norm2", "project", "norm3", "classifiers")
    }
    gah = build_exit("gah", TokenSpec(16, (4, 4), 1), 5)
    assert {k.split(".")[0] for k in gah.state_dict()} == {"qkv", "proj", "classifiers"}
