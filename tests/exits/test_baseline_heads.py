"""Heads of the early-exit baselines: ZTW's cascade, SDN's mixed pooling, the pooler, and taps."""

import pytest
import torch
from torch import nn

import offramp
from offramp.chains import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits import build_exit, expand_layout
from offramp.exits.sdn import SDNExit, window
from offramp.exits.ztw import ZTWExit
from tiny import TINY, tiny_model

SPEC = TokenSpec(48, (4, 4), 1)


def tokens(seed: int = 0, class_tokens: int = 1) -> Tokens:
    torch.manual_seed(seed)
    return Tokens(torch.randn(3, 16, 48), (4, 4), torch.randn(3, class_tokens, 48), class_tokens)


def cascade(**options: object) -> ZTWExit:
    built = build_exit("ztw", SPEC, 5, options)
    assert isinstance(built, ZTWExit)
    nn.init.normal_(built.classifiers.heads[0].weight, std=0.5)
    return built


def test_ztw_is_the_written_formula() -> None:
    built, view, before = cascade(), tokens(), torch.randn(3, 5) * 4
    W, b = built.classifiers.heads[0].weight, built.classifiers.heads[0].bias
    z = (before - before.mean(1, keepdim=True)) / (before.var(1, correction=0) + 1e-5).sqrt()[
        :, None
    ]
    f = nn.functional.layer_norm(view.prefix[:, 0], (48,), eps=1e-6)
    outputs, carry = built(view, (before,))
    torch.testing.assert_close(outputs.logits, f @ W[:, :48].T + z @ W[:, 48:].T + b)
    assert torch.equal(carry[0], outputs.logits)
    assert sum(p.numel() for p in built.parameters()) == 2 * 48 + 2 * 5 + (48 + 5) * 5 + 5


def test_the_inline_link_is_the_written_formula() -> None:
    built, view, before = cascade(link="isc").eval(), tokens(), torch.randn(3, 5) * 4
    linear, normalised, _ = built.previous
    nn.init.normal_(linear.weight)
    normalised.running_mean.fill_(0.5)
    z = ((before @ linear.weight.T + linear.bias - 0.5) / (1 + 1e-5) ** 0.5).clamp(min=0)
    f = nn.functional.layer_norm(view.prefix[:, 0], (48,), eps=1e-6)
    wanted = built.classifiers.heads[0](torch.cat([f, z], dim=1))
    torch.testing.assert_close(built(view, (before,))[0].logits, wanted)
    with pytest.raises(OfframpError, match="ztw: unknown link 'ics'"):
        cascade(link="ics")


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_reaches_the_head_before_only_where_asked(detach: bool) -> None:
    first, second = cascade(first=True), cascade(detach=detach)
    _, carry = first(tokens(0))
    said, _ = second(tokens(1), carry)
    said.logits.square().sum().backward()
    assert (first.classifiers.heads[0].weight.grad is None) == detach
    assert second.classifiers.heads[0].weight.grad is not None


def test_a_cascade_runs_in_a_model_and_cannot_be_thinned() -> None:
    model = tiny_model("ztw")
    assert model.standalone == [True, False, False, True]
    images = torch.randn(2, 3, 32, 32)
    full = model(images)
    carry: tuple = ()
    for k, state in zip(range(3), model.walk(images), strict=False):
        said, carry = model.heads[k](model.chain.tokens(state, model.positions[k] - 1), carry)
        assert torch.equal(said.logits, full[k].logits)
    with pytest.raises(OfframpError, match="depends on every exit before it"):
        model.segments(active=[1])
    assert len(model.segments(active=[0])) == 2


def test_carry_passes_through_heads_that_do_not_use_it() -> None:
    exits = [
        {"after": 1, "head": "ztw", "options": {"first": True}},
        {"after": 2, "head": "linear"},
        {"after": 3, "head": "ztw"},
    ]
    assert len(tiny_model(exits)(torch.randn(2, 3, 32, 32))) == 4


def test_a_cascade_without_a_first_head_says_what_is_missing() -> None:
    model = offramp.create(
        "deit_tiny_patch16_224",
        exits=[{"after": 2, "head": "ztw"}],
        num_classes=5,
        image_size=32,
        backbone_args=TINY,
    )
    with pytest.raises(OfframpError, match="the first needs first: true"):
        model(torch.zeros(1, 3, 32, 32))


def test_regression_hands_its_number_on() -> None:
    """A LayerNorm of one number would be 0 whatever was said."""
    built, view = build_exit("ztw", SPEC, 1, {}), tokens()
    nn.init.ones_(built.classifiers.heads[0].weight)
    low, high = (built(view, (torch.full((3, 1), v),))[0].logits for v in (0.0, 2.0))
    torch.testing.assert_close(high - low, torch.full((3, 1), 2.0))


def test_layouts() -> None:
    ztw = expand_layout("ztw", [1.0] * 6, at=[2, 4, 5])
    assert [spec.options for spec in ztw] == [{"first": True}, {}, {}]
    berxit = expand_layout("berxit", [1.0] * 6, at=[2, 4])
    assert [(spec.head, spec.options) for spec in berxit] == [("pooler", {"lte": True})] * 2


@pytest.mark.parametrize(
    ("side", "windows", "kept"),
    [(14, 3, 4), (8, 2, 4), (7, 2, 3), (24, 6, 4), (3, 1, 3), (5, 1, 5)],
)
def test_sdn_pools_to_about_four_windows_a_side(side: int, windows: int, kept: int) -> None:
    assert window(side, 4) == windows
    built = build_exit("sdn", TokenSpec(6, (side, side)), 5, {})
    assert sum(p.numel() for p in built.parameters()) == 1 + 6 * kept * kept * 5 + 5


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
def test_sdn_mixes_maximum_and_mean(share: float) -> None:
    built = build_exit("sdn", TokenSpec(2, (2, 4)), 4, {"size": 2})
    assert isinstance(built, SDNExit)
    built.share.data.fill_(share)
    nn.init.eye_(built.classifier.weight)
    patches = torch.arange(8.0).view(1, 8, 1).expand(1, 8, 2)
    got = built(Tokens(patches, (2, 4), patches[:, :0]))[0].logits[0]
    # row 0: 0 1 | 2 3, row 1: 4 5 | 6 7, windows of one row and two columns
    mean, largest = torch.tensor([0.5, 2.5, 4.5, 6.5]), torch.tensor([1.0, 3, 5, 7])
    torch.testing.assert_close(got, share * largest + (1 - share) * mean)


def test_sdn_refusals() -> None:
    with pytest.raises(OfframpError, match="sdn needs tokens on a grid"):
        build_exit("sdn", TokenSpec(6, None, 1), 5, {})
    with pytest.raises(OfframpError, match="size = 0"):
        build_exit("sdn", TokenSpec(6, (4, 4), 1), 5, {"size": 0})


def test_pooler_is_berts() -> None:
    built, view = build_exit("pooler", SPEC, 5, {"norm": False}).eval(), tokens()
    expected = built.classifiers.heads[0](torch.tanh(built.pooler(view.prefix[:, 0])))
    torch.testing.assert_close(built(view)[0].logits, expected)
    assert sum(p.numel() for p in built.parameters()) == 48 * 48 + 48 + 5 * 48 + 5
    assert built.dropout.p == 0.1


@pytest.mark.parametrize("name", ["linear", "mlp", "pooler", "ztw"])
@pytest.mark.parametrize("class_tokens", [1, 2])
def test_both_reads_class_token_and_mean_patch(name: str, class_tokens: int) -> None:
    spec = SPEC._replace(class_tokens=class_tokens)
    options = {"pool": "both"} | ({"first": True} if name == "ztw" else {})
    built, view = build_exit(name, spec, 5, options).eval(), tokens(0, class_tokens)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    before = built(view)[0].logits
    moved = view.patches.clone()
    moved[:, 0] += 1.0
    other = Tokens(moved, view.grid, view.prefix, class_tokens)
    assert not torch.allclose(before, built(other)[0].logits)
    other = Tokens(view.patches.flip(1), view.grid, view.prefix, class_tokens)
    torch.testing.assert_close(before, built(other)[0].logits, atol=1e-4, rtol=1e-4)
    for t in range(class_tokens):
        prefix = view.prefix.clone()
        prefix[:, t] += 1.0 + torch.arange(48) / 48
        other = Tokens(view.patches, view.grid, prefix, class_tokens)
        assert not torch.allclose(before, built(other)[0].logits)


def test_linear_on_both_is_the_written_formula() -> None:
    built, view = build_exit("linear", SPEC, 5, {"pool": "both", "norm": False}), tokens()
    x = torch.cat([view.prefix[:, 0], view.patches.mean(1)], dim=1)
    torch.testing.assert_close(built(view)[0].logits, built.classifiers.heads[0](x))


def test_both_needs_a_class_token() -> None:
    for name in ("linear", "mlp", "pooler", "ztw"):
        with pytest.raises(OfframpError, match="there is no class token here"):
            build_exit(name, TokenSpec(48, (4, 4)), 5, {"pool": "both"})
    with pytest.raises(OfframpError, match="pool = 'max'"):
        build_exit("linear", SPEC, 5, {"pool": "max"})
