"""LGViT's heads against the numbers of the paper's released modules."""

import pytest
import torch

import offramp
from offramp.chains import Tokens, TokenSpec
from offramp.costs.macs import count_macs, model_costs
from offramp.errors import OfframpError
from offramp.exits import build_exit, equal_cost_positions, expand_layout
from offramp.exits.lgvit import GAH, LPH, convolve

# head, options, trunk parameters, ViT head, DeiT head, MACs (millions) at D = 768, 14×14, C = 100
TABLE = [
    ("lph", {"kernel": 3}, 1_193_472, 1_270_372, 1_347_272, 232.64),
    ("lph", {"kernel": 1}, 1_184_256, 1_261_156, 1_338_056, 231.29),
    ("gah", {"ratio": 1}, 2_360_064, 2_436_964, 2_513_864, 521.51),
    ("gah", {"ratio": 2}, 2_360_064, 2_436_964, 2_513_864, 119.37),
    ("gah", {"ratio": 3}, 2_360_064, 2_436_964, 2_513_864, 60.02),
]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "options", "trunk", "vit", "deit", "macs"), TABLE)
def test_parameters_and_macs(
    name: str, options: dict, trunk: int, vit: int, deit: int, macs: float
) -> None:
    head = build_exit(name, TokenSpec(768, (14, 14), 1), 100, options).eval()
    assert parameters(head) == vit
    assert parameters(head) - parameters(head.classifiers) == trunk
    assert parameters(build_exit(name, TokenSpec(768, (14, 14), 2), 100, options)) == deit
    view = Tokens(torch.zeros(1, 196, 768), (14, 14), torch.zeros(1, 1, 768), 1)
    D, n = 768, {1: 196, 2: 49, 3: 25}.get(options.get("ratio", 0), 196)
    closed = (
        2 * 196 * D * D + (9 * 196 * D if options.get("kernel") == 3 else 0)
        if name == "lph"
        else 4 * n * D * D + 2 * n * n * D
    ) + 100 * D
    assert count_macs(head, view) == closed
    assert closed == pytest.approx(macs * 1e6, rel=1e-4)


def test_norm_buffers_of_lph() -> None:
    for kernel, buffers in ((3, 4611), (1, 3074)):
        head = build_exit("lph", TokenSpec(768, (14, 14), 1), 100, {"kernel": kernel})
        assert sum(b.numel() for b in head.buffers()) == buffers


@pytest.mark.parametrize(
    ("name", "classes", "backbone", "exits"),
    [
        ("vit_base_patch16_224", 100, 85_875_556, 14_810_912),
        ("vit_base_patch16_224", 101, 85_876_325, 14_817_064),
        ("deit_base_distilled_patch16_224", 100, 85_953_992, 15_426_112),
    ],
)
def test_totals_of_whole_models(name: str, classes: int, backbone: int, exits: int) -> None:
    model = offramp.create(name, exits="lgvit", num_classes=classes)
    assert model.parameter_counts() == {"backbone": backbone, "exits": exits}
    assert model.positions == (4, 5, 6, 7, 8, 9, 10, 11)


@pytest.mark.parametrize(
    ("count", "heads"),
    [
        (2, "k3 r2"),
        (4, "k3 k1 r2 r3"),
        (6, "k3 k1 r2 r2 r3 r3"),
        (8, "k3 k3 k1 k1 r2 r2 r3 r3"),
        (5, "k3 k3 k1 r2 r3"),
    ],
)
def test_layout_puts_local_heads_first(count: int, heads: str) -> None:
    specs = expand_layout("lgvit", [1.0] * 12, count=count)
    names = [
        f"k{s.options['kernel']}" if s.head == "lph" else f"r{s.options['ratio']}" for s in specs
    ]
    assert " ".join(names) == heads


@pytest.mark.parametrize(
    ("depth", "count", "positions"),
    [
        (12, 8, [4, 5, 6, 7, 8, 9, 10, 11]),
        (12, 11, list(range(1, 12))),
        (12, 4, [4, 6, 8, 10]),
        (12, 2, [4, 8]),
        (24, 8, [8, 10, 12, 14, 16, 18, 20, 22]),
        (8, 5, [3, 4, 5, 6, 7]),
        (2, 1, [1]),
    ],
)
def test_placement_by_equal_cost(depth: int, count: int, positions: list[int]) -> None:
    assert equal_cost_positions([1.0] * depth, count) == positions


def test_placement_follows_unequal_costs() -> None:
    costs = [8.0, 1, 1, 1, 1, 1, 1, 1, 1, 8]
    assert equal_cost_positions(costs, 2) == [1, 9]
    with pytest.raises(OfframpError, match="10 blocks have room for 1…9"):
        equal_cost_positions(costs, 10)


def test_stride_keeps_every_rth_row_and_column() -> None:
    spec = TokenSpec(8, (14, 14), 1)
    patches = torch.arange(196.0).view(1, 196, 1).expand(1, 196, 8)
    for ratio, side in ((1, 14), (2, 7), (3, 5)):
        head = build_exit("gah", spec, 3, {"ratio": ratio})
        assert isinstance(head, GAH)
        kept = head.align(patches)[0, :, 0].view(side, side)
        assert kept[0].tolist() == [float(c) for c in range(0, 14, ratio)]
        assert kept[:, 0].tolist() == [14.0 * r for r in range(0, 14, ratio)]
    mean = build_exit("gah", spec, 3, {"ratio": 2, "convergence": "mean"})
    assert isinstance(mean, GAH)
    assert mean.align(patches)[0, 0, 0] == (0 + 1 + 14 + 15) / 4
    assert mean.align(patches).shape == (1, 49, 8)


def test_special_tokens_are_not_convolved_and_patches_keep_raster_order() -> None:
    """A depth-wise kernel that copies the right-hand neighbour moves row r, column c to c − 1."""
    head = build_exit("lph", TokenSpec(1, (2, 3), 1), 2, {"residual": False})
    assert isinstance(head, LPH)
    assert head.depthwise is not None
    torch.nn.init.zeros_(head.depthwise.weight)
    head.depthwise.weight.data[0, 0, 1, 2] = 1.0
    moved = convolve(head.depthwise, torch.arange(1.0, 7).view(1, 6, 1), (2, 3))
    assert moved.flatten().tolist() == [2, 3, 0, 5, 6, 0]


def test_zero_trunk_leaves_the_mean_patch_plus_class_token() -> None:
    head = build_exit("lph", TokenSpec(16, (4, 4), 1), 5, {}).eval()
    assert isinstance(head, LPH)
    torch.nn.init.zeros_(head.norm3.weight)
    patches, cls = torch.randn(2, 16, 16), torch.randn(2, 1, 16)
    expected = head.classifiers(patches.mean(1, keepdim=True) + cls)
    got = head(Tokens(patches, (4, 4), cls, 1))[0].logits
    torch.testing.assert_close(got, expected)


def test_two_classifiers_are_averaged() -> None:
    head = build_exit("gah", TokenSpec(16, (4, 4), 2), 5, {}).eval()
    view = Tokens(torch.randn(2, 16, 16), (4, 4), torch.randn(2, 2, 16), 2)
    g = head.features(view).mean(1)
    first, second = head.classifiers.heads
    expected = (first(g + view.prefix[:, 0]) + second(g + view.prefix[:, 1])) / 2
    torch.testing.assert_close(head(view)[0].logits, expected)


def test_class_token_shifts_logits_by_its_classifier_alone() -> None:
    for class_tokens in (1, 2):
        for name in ("lph", "gah"):
            torch.manual_seed(0)
            head = build_exit(name, TokenSpec(16, (4, 4), class_tokens), 5, {}).eval()
            assert isinstance(head, LPH | GAH)
            patches, prefix = torch.randn(2, 16, 16), torch.randn(2, class_tokens, 16)
            before = Tokens(patches, (4, 4), prefix, class_tokens)
            delta = torch.randn(2, 16)
            moved = prefix.clone()
            moved[:, -1] += delta
            after = Tokens(patches, (4, 4), moved, class_tokens)
            assert torch.equal(head.features(before), head.features(after))
            shift = delta @ head.classifiers.heads[-1].weight.T / class_tokens
            got = head(after)[0].logits - head(before)[0].logits
            torch.testing.assert_close(got, shift, atol=1e-5, rtol=1e-4)


# Exit histograms of the released ViT-B/CIFAR-100 weights (leaving at blocks 4…12), layer and MAC
# speed-ups and mean GMACs worked out from them.
HISTOGRAMS = [
    ([4330, 1556, 943, 894, 1136, 498, 236, 94, 313], 2.0784, 9.090, 1.932),
    ([3234, 1481, 878, 991, 1539, 675, 317, 174, 711], 1.8591, 10.191, 1.723),
    ([1149, 1105, 663, 999, 2103, 1087, 539, 316, 2039], 1.4809, 12.831, 1.369),
]


def test_accounting_of_vit_base() -> None:
    model = offramp.create("vit_base_patch16_224", exits="lgvit", num_classes=100)
    table = model_costs(model, form="train")
    assert table.full / 1e9 == pytest.approx(17.563, abs=2e-3)
    reached = [cost / 1e9 for cost in table.leave_cost()]
    card = [6.164, 7.851, 9.536, 11.221, 12.795, 14.368, 15.882, 17.396, 18.850]
    assert reached == pytest.approx(card, abs=2e-3)
    without = [sum(table.body[: k + 1]) / 1e9 for k in range(model.num_exits)]
    card = [5.931, 7.385, 8.839, 10.293, 11.747, 13.201, 14.655, 16.109]
    assert without[:-1] == pytest.approx(card, abs=2e-3)
    for counts, layers, mean, macs in HISTOGRAMS:
        share = [count / sum(counts) for count in counts]
        blocks = sum(s * b for s, b in zip(share, model.blocks, strict=True))
        assert 12 / blocks == pytest.approx(layers, abs=1e-4)
        assert table.mean_cost(share) / 1e9 == pytest.approx(mean, abs=2e-3)
        assert table.speedup(share) == pytest.approx(macs, abs=1e-3)
