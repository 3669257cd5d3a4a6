"""Multi-Exit ViT's heads: sizes worked out from their definitions, and what they read."""

import pytest
import torch
from torch import Tensor, nn

from offramp.chains import Tokens, TokenSpec
from offramp.costs import count_macs
from offramp.errors import OfframpError
from offramp.exits import Exit, build_exit
from offramp.exits.mevit_cnn import CNNExit
from offramp.exits.reading import as_map

VIT_B = TokenSpec(768, (14, 14), 1)
VIT_B_384 = TokenSpec(768, (24, 24), 1)
SMALL = TokenSpec(192, (8, 8), 1, heads=3)
HEADS: dict[str, tuple[str, dict]] = {
    "mlp": ("mlp_ee", {}),
    "ignore": ("cnn_ignore_ee", {}),
    "add": ("cnn_add_ee", {}),
    "project": ("cnn_project_ee", {}),
    "concat": ("cnn_project_ee", {"join": "concat"}),
    "vit": ("vit_ee", {}),
    "mixer 197": ("mixer_ee", {}),
    "mixer 197 wide": ("mixer_ee", {"token_ratio": 4.0}),
    "mixer 196": ("mixer_ee", {"tokens": "patches"}),
    "resmlp 197": ("resmlp_ee", {}),
    "resmlp 196": ("resmlp_ee", {"tokens": "patches"}),
}


def head(kind: str, spec: TokenSpec, classes: int, **more: object) -> Exit:
    name, options = HEADS[kind]
    return build_exit(name, spec, classes, options | more).eval()


def size(kind: str, spec: TokenSpec, classes: int, **more: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in head(kind, spec, classes, **more).parameters())


def zeros(spec: TokenSpec) -> Tokens:
    return Tokens(
        torch.zeros(1, spec.patches, spec.width), spec.grid, torch.zeros(1, 1, spec.width), 1
    )


@pytest.mark.parametrize(
    ("kind", "sizes", "macs"),
    [
        ("mlp", [2_305, 9_226, 78_436, 770_536], 76_800),
        ("ignore", [111_393, 118_458, 189_108, 895_608], 21_754_432),
        ("add", [111_393, 118_458, 189_108, 895_608], 21_754_432),
        ("project", [1_291_809, 1_298_874, 1_369_524, 2_076_024], 252_965_440),
        ("concat", [221_985, 229_050, 299_700, 1_006_200], 43_430_464),
        ("vit", [7_090_177, 7_097_098, 7_166_308, 7_858_408], 1_454_031_360),
        ("mixer 197", [4_879_686, 4_886_607, 4_955_817, 5_647_917], 1_045_834_752),
        ("mixer 197 wide", [5_941_446, 5_948_367, 6_017_577, 6_709_677], 1_859_202_048),
        ("mixer 196", [4_878_917, 4_885_838, 4_955_048, 5_647_148], 1_040_526_336),
        ("resmlp 197", [4_768_351, 4_775_272, 4_844_482, 5_536_582], 959_444_736),
        ("resmlp 196", [4_767_957, 4_774_878, 4_844_088, 5_536_188], 954_424_320),
    ],
)
def test_sizes_on_vit_base(kind: str, sizes: list[int], macs: int) -> None:
    assert [size(kind, VIT_B, classes) for classes in (1, 10, 100, 1000)] == sizes
    assert count_macs(head(kind, VIT_B, 100), zeros(VIT_B)) == macs


@pytest.mark.parametrize(
    ("kind", "ten", "hundred"),
    [
        ("mlp", 4_731_658, 4_800_868),
        ("ignore", 5_039_626, 5_110_276),
        ("project", 6_220_042, 6_290_692),
        ("vit", 11_819_530, 11_888_740),
        ("mixer 197", 9_609_039, 9_678_249),
        ("resmlp 197", 9_497_704, 9_566_914),
    ],
)
def test_sizes_with_mlp_classifiers(kind: str, ten: int, hundred: int) -> None:
    assert size(kind, VIT_B, 10, head="mlp") == ten
    assert size(kind, VIT_B, 100, head="mlp") == hundred


@pytest.mark.parametrize(
    ("kind", "at_384", "small"),
    [
        ("mlp", None, 2_314),
        ("ignore", 112_913, 30_234),
        ("project", 1_293_329, 104_154),
        ("concat", None, 57_882),
        ("vit", 7_090_177, 447_178),
        ("mixer 197", 5_171_906, 311_595),
        ("resmlp 197", 5_062_851, 303_628),
    ],
)
def test_sizes_at_384_pixels_and_of_the_small_model(
    kind: str, at_384: int | None, small: int
) -> None:
    if at_384 is not None:
        assert size(kind, VIT_B_384, 1) == at_384
    assert size(kind, SMALL, 10) == small


def test_mlp_classifier_on_a_map_explodes_at_384_pixels() -> None:
    assert size("ignore", VIT_B_384, 1, head="mlp") == 42_591_761


def test_block_of_the_small_model() -> None:
    built = head("vit", SMALL, 10)
    assert sum(p.numel() for p in built.layer.parameters()) == 444_864
    assert count_macs(built.layer, torch.zeros(1, 65, 192)) == 30_376_320
    assert built.layer.attn.num_heads == 3


def test_leading_tokens_alone_cost_less() -> None:
    D, N, C = 192, 65, 10
    fast = {kind: head(kind, SMALL, C).for_inference() for kind in ("vit", "mixer 197", "project")}
    counted = {kind: count_macs(module, zeros(SMALL)) for kind, module in fast.items()}
    assert counted["vit"] == 2 * N * D * D + 2 * N * D + 10 * D * D + C * D
    assert counted["mixer 197"] == N * (D // 2) * D + (D // 2) * D + 8 * D * D + C * D
    assert counted["project"] == 64 * D * D + D * D + 64 * 144 * D + 256 * C


def tokens(generator: int = 0, spec: TokenSpec = SMALL) -> Tokens:
    torch.manual_seed(generator)
    patches = torch.randn(2, spec.patches, spec.width)
    return Tokens(patches, spec.grid, torch.randn(2, 1, spec.width), 1)


def lively(kind: str) -> Exit:
    """A head whose weights are large enough to show a difference."""
    built = head(kind, SMALL, 5)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.2)
    return built


@pytest.mark.parametrize("kind", ["ignore", "add", "project", "concat"])
def test_pixels_of_the_map_are_patches_in_raster_order(kind: str) -> None:
    spec = TokenSpec(6, (3, 4), 1)
    built = head(kind, spec, 5)
    assert isinstance(built, CNNExit)
    if kind == "project":  # so that it copies the patch
        nn.init.zeros_(built.join.linear.weight)
        nn.init.eye_(built.join.linear.weight.data[:, :6])
    numbers = torch.arange(1.0, 13).view(1, 12, 1).expand(1, 12, 6)
    maps = as_map(built.readout(Tokens(numbers, (3, 4), torch.zeros(1, 1, 6), 1)), (3, 4))
    for r in range(3):
        for c in range(4):
            value = torch.tensor(r * 4 + c + 1.0)
            value = nn.functional.gelu(value) if kind == "project" else value
            torch.testing.assert_close(maps[0, :6, r, c], value.expand(6))


def test_add_with_no_class_token_to_add_is_ignore() -> None:
    ignore, add, view = lively("ignore"), head("add", SMALL, 5), tokens()
    add.load_state_dict(ignore.state_dict())
    silent = Tokens(view.patches, view.grid, torch.zeros_like(view.prefix), 1)
    assert torch.equal(add(silent)[0].logits, ignore(silent)[0].logits)
    assert not torch.allclose(add(view)[0].logits, ignore(view)[0].logits)


@pytest.mark.parametrize(
    ("kind", "reads_class", "reads_patches"),
    [
        ("mlp", True, False),
        ("ignore", False, True),
        ("add", True, True),
        ("project", True, True),
        ("concat", True, True),
        ("vit", True, True),
        ("mixer 197", True, True),
        ("mixer 196", False, True),
        ("resmlp 197", True, True),
        ("resmlp 196", False, True),
    ],
)
def test_who_is_read(kind: str, reads_class: bool, reads_patches: bool) -> None:
    built, view, other = lively(kind), tokens(0), tokens(1)

    def differs(patches: Tensor, prefix: Tensor) -> bool:
        changed = built(Tokens(patches, view.grid, prefix, 1))[0].logits
        return not torch.equal(changed, built(view)[0].logits)

    assert differs(view.patches, other.prefix) == reads_class
    assert differs(other.patches, view.prefix) == reads_patches


def test_project_is_the_written_formula() -> None:
    built, view = lively("project"), tokens()
    assert isinstance(built, CNNExit)
    W, b = built.join.linear.weight, built.join.linear.bias
    j, image = 11, 1
    joined = torch.cat([view.patches[image, j], view.prefix[image, 0]])
    expected = nn.functional.gelu(W @ joined + b)
    torch.testing.assert_close(built.readout(view)[image, j], expected, atol=1e-4, rtol=1e-4)


def test_mixer_is_the_written_formula() -> None:
    built, view = lively("mixer 197"), tokens()
    layer, x = built.layer, torch.cat([view.prefix, view.patches], dim=1)
    y = layer.norm1(x).transpose(1, 2)
    hidden = nn.functional.gelu(y @ layer.mlp_tokens.fc1.weight.T + layer.mlp_tokens.fc1.bias)
    x = x + (hidden @ layer.mlp_tokens.fc2.weight.T + layer.mlp_tokens.fc2.bias).transpose(1, 2)
    x = x + layer.mlp_channels(layer.norm2(x))
    expected = built.classifiers(built.norm(x)[:, :1])
    torch.testing.assert_close(built(view)[0].logits, expected, atol=1e-3, rtol=1e-4)


def test_resmlp_starts_near_the_mean_token() -> None:
    """Layer scales start at 0.1; at 0 the layer is the identity."""
    built, view = head("resmlp 197", SMALL, 5), tokens()
    for scale in (built.layer.ls1, built.layer.ls2):
        assert scale.tolist() == [pytest.approx(0.1)] * 192
        nn.init.zeros_(scale)
    mean = torch.cat([view.prefix, view.patches], dim=1).mean(dim=1, keepdim=True)
    torch.testing.assert_close(built(view)[0].logits, built.classifiers(mean))


def test_both_classifiers_of_a_distilled_model_see_their_own_token() -> None:
    spec = SMALL._replace(class_tokens=2)
    built = build_exit("mlp_ee", spec, 5, {"head": "mlp"}).eval()
    view = Tokens(torch.randn(2, 64, 192), (8, 8), torch.randn(2, 2, 192), 2)
    first, second = built.classifiers.heads
    x = built.norm(view.prefix)
    expected = (first(x[:, 0]) + second(x[:, 1])) / 2
    torch.testing.assert_close(built(view)[0].logits, expected)


PRUNED = TokenSpec(48, None, 1)
CLASSLESS = TokenSpec(48, (4, 4))


@pytest.mark.parametrize(
    ("name", "spec", "options", "sentence"),
    [
        *(
            (name, PRUNED, {}, f"{name} needs tokens on a grid")
            for name in ("cnn_ignore_ee", "cnn_add_ee", "cnn_project_ee", "mixer_ee", "resmlp_ee")
        ),
        ("cnn_add_ee", CLASSLESS, {}, "class token.*none here.*cnn_ignore_ee"),
        ("cnn_ignore_ee", TokenSpec(48, (1, 9), 1), {}, "2 × 2 patches, but the grid is 1 × 9"),
        ("cnn_project_ee", CLASSLESS, {"join": "sum"}, "join = 'sum'.*'project' or 'concat'"),
        ("mixer_ee", CLASSLESS, {"tokens": "some"}, "tokens = 'some'.*'all' or 'patches'"),
        ("mixer_ee", CLASSLESS, {"pool": "class"}, "no class token enters"),
        (
            "resmlp_ee",
            TokenSpec(48, (4, 4), 1),
            {"tokens": "patches", "pool": "class"},
            "no class token enters",
        ),
        ("vit_ee", CLASSLESS, {"pool": "max"}, "pool = 'max'.*'auto', 'class' or 'mean'"),
        ("vit_ee", CLASSLESS, {"heads": 5}, "heads = 5 does not divide the token width 48"),
        ("mlp_ee", CLASSLESS, {"head": "deep"}, "head = 'deep' .use 'linear' or 'mlp'"),
    ],
)
def test_what_is_undefined_is_refused(
    name: str, spec: TokenSpec, options: dict, sentence: str
) -> None:
    with pytest.raises(OfframpError, match=sentence):
        build_exit(name, spec, 5, options)


def test_vit_and_mlp_heads_read_pruned_tokens() -> None:
    for name in ("vit_ee", "mlp_ee"):
        built = build_exit(name, PRUNED, 5, {}).eval()
        for n in (3, 8):
            view = Tokens(torch.randn(2, n, 48), None, torch.randn(2, 1, 48), 1)
            assert built(view)[0].logits.shape == (2, 5)
