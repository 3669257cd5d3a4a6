"""ViL against the paper's sizes, dense attention with its masks, and the released layout."""

import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from families import enliven
from offramp.backbones import build_backbone
from offramp.costs import count_macs
from offramp.errors import OfframpError
from offramp.zoo.vil import VisionLongformer
from offramp.zoo.vil_attention import FullAttention, WindowAttention
from offramp.zoo.vil_checkpoint import convert
from offramp.zoo.vil_windows import OFFSETS

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "references"
# parameters with position tables, with relative biases; 10⁹ MACs of the released code
SIZES = {
    "vil_tiny": (6_707_080, 6_719_698, 1.460),
    "vil_small": (24_635_752, 24_657_328, 5.314),
    "vil_medium_deep": (39_721_192, 39_782_296, 9.418),
    "vil_medium_wide": (39_776_488, 39_801_208, 12.044),
    "vil_base_deep": (55_696_360, 55_801_384, 14.599),
    "vil_base_wide": (78_998_760, 79_041_948, 18.825),
}
# stages, norm, head
PARTS = {
    ("vil_tiny", False): (33_504, 133_440, 4_081_152, 2_073_216, 768, 385_000),
    ("vil_tiny", True): (31_500, 132_852, 4_098_036, 2_071_542, 768, 385_000),
    ("vil_small", False): (122_304, 969_792, 14_497_920, 8_275_200, 1_536, 769_000),
}
# grids 16, 8, 4, 2 at 64 pixels: windows of 3 pad everywhere
TINY: dict[str, Any] = {
    "embed_dims": (8, 16, 24, 32),
    "num_heads": (1, 2, 2, 4),
    "depths": (1, 2, 1, 1),
    "windows": (3, 3, 3, 3),
    "num_classes": 7,
    "img_size": 64,
}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def tiny(**arguments: Any) -> VisionLongformer:
    torch.manual_seed(0)
    return enliven(timm.create_model("vil_tiny", **TINY | arguments)).eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sliding(model: VisionLongformer) -> Iterator[WindowAttention]:
    return (m for m in model.modules() if isinstance(m, WindowAttention))


@pytest.mark.parametrize("name", SIZES)
def test_size_is_that_of_the_paper(name: str) -> None:
    absolute, relative, giga_macs = SIZES[name]
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        assert count(model) == absolute
        assert count(timm.create_model(name, rpb=True)) == relative
        macs = count_macs(model, torch.zeros(1, 3, 224, 224))
    # The released code multiplies with the weights of keys and values twice, for patches and for
    # global tokens, even though they are the same.
    again = sum((1 + math.prod(a.grid)) * a.kv.weight.numel() for a in sliding(model))
    assert (macs + again) / 1e9 == pytest.approx(giga_macs, rel=0.01)


def test_global_tokens_with_weights_of_their_own_cost_what_the_released_code_does() -> None:
    with torch.device("meta"):
        model = timm.create_model("vil_tiny", share_global=False).eval()
        macs = count_macs(model, torch.zeros(1, 3, 224, 224))
    assert macs / 1e9 == pytest.approx(1.460, rel=0.01)
    assert count(model) == SIZES["vil_tiny"][0] + sum(4 * d * d + 4 * d for d in (48, 96))


@pytest.mark.parametrize(("name", "rpb"), PARTS)
def test_parts_have_the_right_size(name: str, rpb: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, rpb=rpb)
    parts = [*model.stages, model.norm, model.head]
    assert tuple(count(part) for part in parts) == PARTS[name, rpb]
    assert [stage.grid for stage in model.stages] == [(56, 56), (28, 28), (14, 14), (7, 7)]


def test_windows_cost_in_proportion_to_the_patches() -> None:
    def macs(side: int) -> tuple[int, int]:
        with torch.device("meta"):
            window = WindowAttention(48, 3, (side, side))
            full = FullAttention(48, 3, (side, side), num_globals=1)
            x = torch.zeros(1, 1 + side**2, 48)
        return count_macs(window, x), count_macs(full, x)

    (window, full), (window_large, full_large) = macs(56), macs(112)
    assert window_large / window == pytest.approx(4, rel=1e-3)
    assert full_large / full > 13


BIASES = {
    "bias_table": "local_relative_position_bias_table",
    "bias_g2l": "g2l_relative_position_bias",
    "bias_g2g": "g2g_relative_position_bias",
}


def attention(
    w: dict[str, Tensor],
    x: Tensor,
    grid: tuple[int, int],
    *,
    heads: int,
    g: int,
    window: int | None,
    mask: str = "chunks",
    offsets: tuple[tuple[int, int], ...] = OFFSETS,
) -> Tensor:
    """The definition, densely: all scores, those that do not count at −∞, biases by distance.

    ``w`` has the released names; without ``window`` everything counts.
    """
    batch, total, dim = x.shape
    place = torch.arange(math.prod(grid))
    side = [place // grid[1], place % grid[1]]
    distance = [p[:, None] - p for p in side]
    keep = torch.ones(len(place), len(place), dtype=torch.bool)
    reach = grid
    if window is not None:
        apart = []
        for part, p in enumerate(side):
            chunks = -(-grid[part] // window)
            steps = p // window - (p // window)[:, None]  # from the reader's chunk to the read one
            if mask == "cyclic":
                steps = (steps + 1) % chunks - 1
                distance[part] = (p % window)[:, None] - p % window - steps * window
            apart.append(steps)
        keep = torch.zeros_like(keep)
        for a, b in offsets:
            keep |= (apart[0] == a) & (apart[1] == b)
        if mask == "exact":
            keep &= (distance[0].abs() <= window) & (distance[1].abs() <= window)
        reach = (2 * window, 2 * window)
    local = torch.zeros(heads, len(place), len(place)).masked_fill(~keep, -math.inf)
    bias = F.pad(local, (g, 0, g, 0))
    if (table := w.get("local_relative_position_bias_table")) is not None:
        row = (distance[0] + reach[0] - 1) * (2 * reach[1] - 1) + distance[1] + reach[1] - 1
        bias[:, g:, g:] += table[row * keep].permute(2, 0, 1)
        if g:
            bias[:, :g, :g] = w["g2g_relative_position_bias"]
            bias[:, :g, g:] = w["g2l_relative_position_bias"][0][:, :, None]
            bias[:, g:, :g] = w["g2l_relative_position_bias"][1][:, None, :]

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def read(query: Tensor, kv: Tensor) -> Tensor:
        q = query.view(batch, total, heads, -1).transpose(1, 2)
        k, v = kv.view(batch, total, 2, heads, -1).permute(2, 0, 3, 1, 4)
        a = (q @ k.mT / math.sqrt(dim // heads) + bias).softmax(-1)
        return (a @ v).transpose(1, 2).flatten(2)

    if window is None:
        q, kv = linear("qkv", x).split((dim, 2 * dim), -1)
        return linear("proj", read(q, kv))
    out = linear("proj", read(linear("query", x), linear("kv", x)))
    if g and "query_global.weight" in w:
        first = read(linear("query_global", x), linear("kv_global", x))
        out = torch.cat([linear("proj_global", first[:, :g]), out[:, g:]], 1)
    return out


def by_definition(attn: WindowAttention, x: Tensor, **options: Any) -> Tensor:
    weights = {BIASES.get(name, name): tensor for name, tensor in attn.named_parameters()}
    shape: dict[str, Any] = {"heads": attn.num_heads, "g": attn.num_globals, "mask": attn.mask}
    return attention(weights, x, attn.grid, window=attn.window, **shape | options)


def layer(grid: tuple[int, int], **options: Any) -> tuple[WindowAttention, Tensor]:
    """Attention with weights that matter, and tokens."""
    torch.manual_seed(0)
    attn = WindowAttention(12, 2, grid, **options)
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.normal_(std=0.4)
    return attn.eval(), torch.randn(2, attn.num_globals + math.prod(grid), 12)


@pytest.mark.parametrize("mask", ["chunks", "exact"])
@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize(
    ("grid", "window", "num_globals", "share"),
    [
        ((16, 19), 7, 0, True),
        ((16, 19), 7, 1, True),
        ((16, 19), 7, 2, False),
        ((8, 8), 2, 1, False),
        ((7, 7), 7, 1, True),
        ((5, 23), 4, 2, True),
        ((13, 3), 5, 1, True),
        ((21, 6), 3, 0, True),
    ],
)
@torch.no_grad()
def test_windows_equal_dense_attention_with_a_mask(
    grid: tuple[int, int], window: int, num_globals: int, share: bool, rpb: bool, mask: str
) -> None:
    options: dict[str, Any] = {"window": window, "num_globals": num_globals, "mask": mask}
    attn, x = layer(grid, share_global=share, rpb=rpb, **options)
    torch.testing.assert_close(attn(x), by_definition(attn, x), **CLOSE)


@pytest.mark.parametrize("rpb", [False, True])
@torch.no_grad()
def test_a_cyclic_map_has_no_border(rpb: bool) -> None:
    attn, x = layer((10, 12), window=3, mask="cyclic", rpb=rpb)
    torch.testing.assert_close(attn(x), by_definition(attn, x), **CLOSE)
    attn, x = layer((12, 12), window=3, num_globals=0, mask="cyclic", rpb=rpb)
    moved = x.unflatten(1, (12, 12)).roll((3, 6), (1, 2)).flatten(1, 2)
    expected = attn(x).unflatten(1, (12, 12)).roll((3, 6), (1, 2)).flatten(1, 2)
    torch.testing.assert_close(attn(moved), expected, **CLOSE)


@pytest.mark.parametrize("mask", ["chunks", "exact"])
@torch.no_grad()
def test_fewer_neighbours(mask: str) -> None:
    attn, x = layer((10, 11), window=3, rpb=True, mask=mask)
    attn.set_neighbours("own")
    torch.testing.assert_close(attn(x), by_definition(attn, x, offsets=((0, 0),)), **CLOSE)
    attn.set_neighbours("random")
    torch.testing.assert_close(attn(x), by_definition(attn, x), **CLOSE)
    attn.train()
    others = [o for o in OFFSETS if o != (0, 0)]
    expected = [by_definition(attn, x, offsets=((0, 0), o)) for o in others]
    drawn = set()
    for _ in range(60):
        out = attn(x)
        drawn |= {i for i, e in enumerate(expected) if torch.allclose(out, e, **CLOSE)}
        assert any(torch.allclose(out, e, **CLOSE) for e in expected)
    assert drawn == set(range(8))


def test_gradients_equal_those_of_dense_attention() -> None:
    attn, x = layer((7, 8), window=3, rpb=True, share_global=False)
    found = []
    for call in (attn, lambda x: by_definition(attn, x)):
        leaf = x.clone().requires_grad_()
        attn.zero_grad()
        (call(leaf) * torch.linspace(-1, 1, 12)).sum().backward()
        found.append([leaf.grad, *(p.grad.clone() for p in attn.parameters())])
    for ours, dense in zip(*found, strict=True):
        assert dense.abs().sum() > 0
        torch.testing.assert_close(ours, dense, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_one_broken_image_leaves_the_others_alone() -> None:
    attn, x = layer((7, 8), window=3)
    expected = attn(x)[1]
    x[0] = math.nan
    torch.testing.assert_close(attn(x)[1], expected, **CLOSE)


def released(model: VisionLongformer) -> dict[str, Tensor]:
    """Random weights under the released names, with the shapes this model has."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    width = model.in_chans
    for s, stage in enumerate(model.stages, start=1):
        (height, columns), g, dim = (
            stage.grid,
            stage.num_globals,
            stage.patch_embed.proj.out_channels,
        )
        rpb, heads = stage.blocks[0].attn.rpb, stage.blocks[0].attn.num_heads
        layer(f"layer{s}.0.proj", dim, width, *stage.patch_embed.proj.kernel_size)
        layer(f"layer{s}.0.norm_embed", dim)
        if g:
            shapes[f"layer{s}.0.cls_token"] = (1, g, dim)
        if not rpb:
            shapes[f"layer{s}.0.x_pos_embed"] = (1, height, dim // 2)
            shapes[f"layer{s}.0.y_pos_embed"] = (1, columns, dim // 2)
            if g:
                shapes[f"layer{s}.0.cls_pos_embed"] = (1, g, dim)
        for n, block in enumerate(stage.blocks):
            attn, mlp = f"layer{s}.{2 * n + 1}.attn", f"layer{s}.{2 * n + 2}"
            layer(f"layer{s}.{2 * n + 1}.norm", dim)
            layer(f"{mlp}.norm", dim)
            layer(f"{mlp}.mlp.fc1", 4 * dim, dim)
            layer(f"{mlp}.mlp.fc2", dim, 4 * dim)
            rows = (2 * height - 1) * (2 * columns - 1)
            layer(f"{attn}.proj", dim, dim)
            if isinstance(block.attn, WindowAttention):
                rows = (4 * block.attn.window - 1) ** 2
                for end in ("", "_global") if g else ("",):
                    layer(f"{attn}.query{end}", dim, dim)
                    layer(f"{attn}.kv{end}", 2 * dim, dim)
                    layer(f"{attn}.proj{end}", dim, dim)
            else:
                layer(f"{attn}.qkv", 3 * dim, dim)
            if rpb:
                shapes[f"{attn}.local_relative_position_bias_table"] = (rows, heads)
                shapes[f"{attn}.g2l_relative_position_bias"] = (2, heads, g)
                shapes[f"{attn}.g2g_relative_position_bias"] = (heads, g, g)
                shapes[f"{attn}.relative_position_index"] = (3, 5)
        width = dim
    layer("norm", width)
    layer("head", model.num_classes, width)
    generator = torch.Generator().manual_seed(3)
    weights = {name: 0.3 * torch.randn(s, generator=generator) for name, s in shapes.items()}
    if model.stages[0].blocks[0].attn.share_global:
        for name in [name for name in weights if "_global." in name]:
            weights[name] = weights[name.replace("_global.", ".")].clone()
    return weights


def by_hand(w: dict[str, Tensor], x: Tensor, model: VisionLongformer) -> Tensor:
    """The whole network from its released weights, one formula after the other."""
    heads, windows = TINY["num_heads"], (3, 3, None, None)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    g, grid = 0, (0, 0)
    for s in range(1, 5):
        if s > 1:
            x = x[:, g:].mT.unflatten(2, grid)
        kernel = w[f"layer{s}.0.proj.weight"]
        x = F.conv2d(x, kernel, w[f"layer{s}.0.proj.bias"], stride=kernel.shape[-1])
        grid = (x.shape[2], x.shape[3])
        places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
        x = norm(f"layer{s}.0.norm_embed", torch.stack([x[:, :, i, j] for i, j in places], 1))
        first = w.get(f"layer{s}.0.cls_token", x[:1, :0])
        if (rows := w.get(f"layer{s}.0.x_pos_embed")) is not None:
            columns = w[f"layer{s}.0.y_pos_embed"]
            x = x + torch.stack([torch.cat([rows[0, i], columns[0, j]]) for i, j in places])
            first = first + w.get(f"layer{s}.0.cls_pos_embed", first[:, :0])
        g = first.shape[1]
        x = torch.cat([first.expand(len(x), -1, -1), x], 1)
        for n in range(TINY["depths"][s - 1]):
            attn, mlp = f"layer{s}.{2 * n + 1}", f"layer{s}.{2 * n + 2}"
            own = {k.removeprefix(f"{attn}.attn."): t for k, t in w.items() if k.startswith(attn)}
            y = norm(f"{attn}.norm", x)
            x = x + attention(own, y, grid, heads=heads[s - 1], window=windows[s - 1], g=g)
            y = F.gelu(linear(f"{mlp}.mlp.fc1", norm(f"{mlp}.norm", x)))
            x = x + linear(f"{mlp}.mlp.fc2", y)
    x = norm("norm", x)
    pooled = x[:, 0] if model.global_pool == "token" else x[:, g:].mean(1)
    return linear("head", pooled)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rpb": True},
        {"img_size": (96, 64), "share_global": False},
        {"img_size": (64, 96), "rpb": True, "num_globals": (2, 0, 1, 2), "global_pool": "token"},
        {"img_size": (70, 91), "num_globals": (0, 3, 0, 1)},
    ],
)
@torch.no_grad()
def test_released_weights_give_what_the_formulas_give(options: dict[str, Any]) -> None:
    model = tiny(**options)
    weights = released(model)
    model.load_state_dict(convert(weights, model), strict=True)
    x = torch.randn(2, 3, *model.img_size)
    torch.testing.assert_close(model(x), by_hand(weights, x, model), atol=1e-4, rtol=1e-4)


def test_conversion_is_strict() -> None:
    model = tiny(rpb=True)
    weights = released(model)
    wrapped = {"net": {f"module.{n}": t for n, t in weights.items()}, "arch": "…", "epoch": 3}
    assert convert(wrapped, model).keys() == model.state_dict().keys()
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in convert(own, model).items())

    missing = {k: v for k, v in weights.items() if k != "layer2.4.mlp.fc2.bias"}
    with pytest.raises(OfframpError, match=r"vil_tiny: missing: stages\.1\.blocks\.1\.mlp\.fc2\.b"):
        convert(missing, model)
    with pytest.raises(OfframpError, match=r"unexpected: stages\.0\.blocks\.1\.norm1\.weight$"):
        convert(weights | {"layer1.3.norm.weight": torch.ones(8)}, model)
    with pytest.raises(OfframpError, match=r"unexpected: .*patch_embed\.row_pos"):
        convert(released(tiny()), model)
    with pytest.raises(OfframpError, match=r"wrong shape: norm\.bias \(5,\) instead of \(32,\)"):
        convert(weights | {"norm.bias": torch.ones(5)}, model)
    twin = "layer1.1.attn.kv_global.bias"
    with pytest.raises(OfframpError, match=r"kv_global\.bias differs .*share_global=False"):
        convert(weights | {twin: weights[twin] + 1}, model)
    with pytest.raises(OfframpError, match=r"missing: stages\.0\.blocks\.0\.attn\.query_global"):
        convert(own, tiny(rpb=True, share_global=False))


@pytest.mark.parametrize("rpb", [False, True])
@torch.no_grad()
def test_weights_file_for_other_classes_pixels_and_windows(tmp_path: Path, rpb: bool) -> None:
    weights, path = released(tiny(rpb=rpb)), tmp_path / "model_best.pth"
    torch.save({"net": weights, "best_acc": 76.3}, path)

    def load(image_size: int = 64, num_classes: int = 7, **options: Any) -> Any:
        arguments = {k: v for k, v in TINY.items() if k not in ("num_classes", "img_size")}
        return build_backbone(
            "vil_tiny",
            pretrained=path,
            num_classes=num_classes,
            image_size=image_size,
            arguments=arguments | {"rpb": rpb} | options,
        ).eval()

    x = torch.randn(2, 3, 64, 64)
    same, other = load(), load(num_classes=4)
    assert other(x).shape == (2, 4)
    assert torch.equal(other.forward_features(x), same.forward_features(x))
    large = load(image_size=128, windows=(5, 4, 3, 3))
    for old, new in zip(same.parameters(), large.parameters(), strict=True):
        if old.shape != new.shape:  # a table: the same curve, more points
            assert old.mean().item() == pytest.approx(new.mean().item(), abs=0.05)
            assert new.abs().max() <= old.abs().max()
    same.set_input_size(128)
    assert same.img_size == large.img_size == (128, 128)
    x = torch.randn(2, 3, 128, 128)
    assert torch.equal(same.forward_features(x), load(image_size=128).forward_features(x))


@torch.no_grad()
def test_model_for_another_size_and_back() -> None:
    for rpb in (False, True):
        model = tiny(rpb=rpb)
        state, x = model.state_dict(), torch.randn(1, 3, 96, 72)
        model.set_input_size((96, 72))
        fresh = tiny(rpb=rpb, img_size=(96, 72))
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), model(x))
        assert count(model) == count(fresh)
        model.set_input_size(64)
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in state.items()
        }
    flat = tiny()
    for parameter in flat.parameters():
        parameter.fill_(0.25)
    flat.set_input_size((96, 72))
    assert all(bool((p == 0.25).all()) for p in flat.parameters())  # a constant stays one


@torch.no_grad()
def test_timm_manners() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    last, maps = model.forward_intermediates(x, indices=[0, 1, 3])
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 2, 2)]
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(model.norm(maps[2].flatten(2).mT), last)
    assert torch.equal(model.forward_head(last), model(x))
    assert model.forward_head(last, pre_logits=True).shape == (2, 32)
    rows = model.forward_intermediates(
        x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True, stop_early=True
    )
    assert torch.equal(rows[0], last)
    early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[1])

    features = tiny(features_only=True, out_indices=(0, 1))
    features.model.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(features(x)[1], maps[1])
    assert features.feature_info.reduction() == [4, 8]
    assert features.feature_info.channels() == [8, 16]
    assert len(features.model.stages) == 2
    assert [tuple(m.shape[1:]) for m in tiny(features_only=True)(x)][2] == (24, 4, 4)

    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(last, pre_logits=True))
    assert isinstance(model.get_classifier(), nn.Identity)


def test_errors_say_what_would_do() -> None:
    with pytest.raises(OfframpError, match=r"images of \(24, 24\) .*built for \(64, 64\)"):
        tiny()(torch.zeros(1, 3, 24, 24))
    with pytest.raises(OfframpError, match="last stage has no global tokens"):
        tiny(global_pool="token")
    with pytest.raises(OfframpError, match="did you mean 'exact'"):
        tiny(mask="exakt")
    with pytest.raises(OfframpError, match="known: all, own, random"):
        tiny().set_neighbours("two")
    with pytest.raises(OfframpError, match="an entry per stage each, but have 4, 4, 3, 4"):
        tiny(depths=(1, 1, 1))
    with pytest.raises(OfframpError, match=r"\(16, 64\).*no patches"):
        tiny(img_size=(16, 64))


def test_pretrained_cfg_names_layers_that_exist() -> None:
    for name in SIZES:
        with torch.device("meta"):
            model = timm.create_model(name, depths=(1, 1, 1, 1))
        config = model.pretrained_cfg
        assert model.get_submodule(config["first_conv"]).in_channels == 3
        assert model.get_submodule(config["classifier"]).out_features == config["num_classes"]
        assert config["architecture"] == name
    with pytest.raises(OfframpError, match="no weights for vil_tiny"):
        build_backbone("vil_tiny", pretrained=True)


def test_every_parameter_belongs_to_a_group() -> None:
    model = tiny(rpb=True)
    groups = create_optimizer_v2(model, "adamw", weight_decay=0.1, layer_decay=0.5).param_groups
    plain = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    names = dict(model.named_parameters())
    assert {id(names[name]) for name in model.no_weight_decay()} <= plain
    assert "stages.2.blocks.0.attn.bias_g2g" in model.no_weight_decay()
    assert "stages.0.patch_embed.row_pos" in tiny().no_weight_decay()
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    deep = [f"stages.{s}.blocks.0.norm1.weight" for s in range(4)]
    order = [scale[id(names[name])] for name in ("stages.0.patch_embed.proj.weight", *deep)]
    assert order == sorted(set(order))
    assert scale[id(names["head.weight"])] == 1


def test_gradients_reach_everything_and_checkpointing_changes_nothing() -> None:
    model = tiny(drop_path_rate=0.0, rpb=True).train()
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(x).square().sum().backward()
        idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # what the last block of a stage makes of its global tokens is not read any more
        assert idle == [f"stages.{s}.blocks.{b}.attn.bias_g2g" for s, b in ((0, 0), (1, 1), (2, 0))]
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_drop_path_grows_with_depth() -> None:
    model = timm.create_model("vil_tiny", **TINY)
    rates = [block.drop_path1.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


@torch.no_grad()
def test_plain_reference_of_the_benchmark_agrees() -> None:
    reference: Callable[..., nn.Module] = runpy.run_path(str(REFERENCES / "vil.py"))["reference"]
    model = tiny(img_size=(80, 68))
    x = torch.randn(2, 3, 80, 68)
    torch.testing.assert_close(model(x), reference(model)(x), **CLOSE)
