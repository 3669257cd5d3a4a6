"""Shuffle Transformer against the paper's sizes, dense attention, a plain twin, released names."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from families import enliven, settle
from offramp.costs import count_macs
from offramp.errors import OfframpError
from offramp.zoo.shuffle import ShuffleTransformer, convert
from offramp.zoo.shuffle_block import ShuffleBlock, WindowAttention

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "references"
reference: Callable[[Any], nn.Module] = runpy.run_path(str(REFERENCES / "shuffle.py"))["reference"]

# parameters, 10⁹ MACs, drop path
SIZES = {
    "shuffle_tiny": (28_532_482, 4.673, 0.1),
    "shuffle_small": (50_076_178, 8.967, 0.3),
    "shuffle_base": (88_398_560, 15.742, 0.5),
}
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "head_dim": 8,
    "depths": (2, 4),
    "window_size": 3,
    "img_size": (48, 24),
    "num_classes": 7,
    "drop_path_rate": 0.0,
}


def tiny(**arguments: Any) -> ShuffleTransformer:
    """A small member whose norms know the statistics of noise."""
    torch.manual_seed(0)
    model = enliven(timm.create_model("shuffle_tiny", **TINY | arguments))
    settle(model, torch.randn(8, model.in_chans, *model.img_size))
    return model.eval()


def on_meta(name: str) -> ShuffleTransformer:
    with torch.device("meta"):
        return timm.create_model(name).eval()


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_size_is_that_of_the_paper(name: str) -> None:
    parameters, giga_macs, drop_path = SIZES[name]
    model = on_meta(name)
    assert size(model) == parameters
    assert all(p.requires_grad for p in model.parameters())
    macs = count_macs(model, torch.empty(1, 3, 224, 224, device="meta"))
    assert macs / 1e9 == pytest.approx(giga_macs, abs=6e-4)
    for stage, share in zip(model.stages, (0, 1 / 3, 2 / 3, 1), strict=True):
        rates = [m.drop_prob for m in stage.modules() if isinstance(m, DropPath)]
        assert rates == pytest.approx([share * drop_path] * 2 * len(stage.blocks))
        assert [block.attn.shuffled for block in stage.blocks] == [False, True] * (len(rates) // 4)


def test_parts_have_the_right_size() -> None:
    model = on_meta("shuffle_tiny")
    assert size(model.stem) == 38_208
    assert [size(stage) for stage in model.stages] == [234_102, 984_492, 11_067_144, 15_439_536]
    assert size(model.stages[1].downsample) == 73_920
    assert size(model.head) == 769_000


@pytest.mark.parametrize(("width", "heads"), [(96, 3), (192, 6), (384, 12), (1024, 32)])
def test_block_has_the_closed_form_size(width: int, heads: int) -> None:
    c, h = width, heads
    attention = 3 * c**2 + (c**2 + c) + 169 * h
    expected = attention + (49 * c + c) + (8 * c**2 + 5 * c) + 6 * c
    with torch.device("meta"):
        assert size(ShuffleBlock(c, h)) == expected
        assert expected == 117_051 or c != 96


@pytest.mark.parametrize("shuffled", [False, True])
@torch.no_grad()
def test_attention_is_dense_attention_among_the_right_tokens(shuffled: bool) -> None:
    """On a map of 28 × 21 tokens: those of one window, or those of the same residue."""
    torch.manual_seed(0)
    height, width, w, heads, dim = 28, 21, 7, 2, 16
    attn = enliven(WindowAttention(dim, heads, w, shuffled=shuffled))
    attn.relative_position_bias_table.normal_()
    x = torch.randn(2, dim, height, width)
    rows, columns = height // w, width // w
    window, place = [], []
    for y in range(height):
        for z in range(width):
            near = ((y // w, z // w), (y % w, z % w))
            far = ((y % rows, z % columns), (y // rows, z // columns))
            window.append((far if shuffled else near)[0])
            place.append((far if shuffled else near)[1])
    together, spot = torch.tensor(window), torch.tensor(place)
    apart = (together[:, None] != together).any(-1)
    offset = spot[:, None] - spot + w - 1
    bias = attn.relative_position_bias_table[offset[..., 0] * 13 + offset[..., 1]]  # (N, N, h)

    qkv = attn.qkv(x).flatten(2).chunk(3, dim=1)
    q, k, v = (t.unflatten(1, (heads, -1)).transpose(2, 3) for t in qkv)  # (B, h, N, d)
    scores = q @ k.transpose(-2, -1) / (dim / heads) ** 0.5 + bias.permute(2, 0, 1)
    out = scores.masked_fill(apart, -torch.inf).softmax(-1) @ v
    out = attn.proj(out.transpose(2, 3).reshape(2, dim, height, width))
    torch.testing.assert_close(attn(x), out, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_window_is_plain_and_shuffled_at_once() -> None:
    torch.manual_seed(0)
    plain, x = enliven(ShuffleBlock(16, 2)).eval(), torch.randn(1, 7, 7, 16)
    shuffled = ShuffleBlock(16, 2, shuffled=True).eval()
    shuffled.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), shuffled(x))
    wide = torch.randn(1, 14, 14, 16)
    assert not torch.allclose(plain(wide), shuffled(wide), atol=0.1)


@torch.no_grad()
def test_forward_equals_the_plain_twin() -> None:
    model, x = tiny(), torch.randn(3, 3, 48, 24)
    expected = reference(model)(x)
    assert expected.std(0).min() > 0.1
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_real_size_equals_the_plain_twin() -> None:
    torch.manual_seed(0)
    model, x = timm.create_model("shuffle_tiny").eval(), torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model(x), reference(model)(x), atol=1e-5, rtol=1e-4)


def test_training_equals_the_plain_twin() -> None:
    """The order of the memory changes neither statistics nor gradients."""
    model = tiny().train()
    twin, x = reference(model).train(), torch.randn(4, 3, 48, 24)
    logits, expected = model(x), twin(x)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for name, buffer in twin.named_buffers():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(model.get_buffer(name), buffer, atol=1e-4, rtol=1e-4)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in twin.named_parameters():
        own = model.get_parameter(name).grad
        assert own is not None
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(own, parameter.grad, atol=1e-3 * scale + 1e-3, rtol=1e-3)


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
OFFICIAL_BLOCK = (
    *(f"{norm}.{leaf}" for norm in ("norm1", "norm2", "norm3") for leaf in NORM),
    *("attn.relative_position_bias_table", "attn.relative_position_index"),
    *("attn.to_qkv.weight", "attn.proj.weight", "attn.proj.bias", "local.weight", "local.bias"),
    *("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
)


def released(model: ShuffleTransformer) -> dict[str, Tensor]:
    """The model's weights under the released names and shapes."""
    own, found = model.state_dict(), {}
    for part in ("conv1.0", "conv2.0", "conv3"):
        for leaf in ("weight", "bias"):
            found[f"to_token.{part}.{leaf}"] = own[f"stem.{part}.{leaf}"]
    for part in ("conv1.1", "conv2.1"):
        found |= {f"to_token.{part}.{leaf}": own[f"stem.{part}.{leaf}"] for leaf in NORM}
    for s, stage in enumerate(model.stages):
        if s:
            for leaf in (*(f"norm.{n}" for n in NORM), "reduction.weight"):
                name = f"stage{s + 1}.patch_partition.{leaf}"
                found[name] = own[f"stages.{s}.downsample.{leaf}"]
        for i in range(len(stage.blocks)):
            for leaf in OFFICIAL_BLOCK:
                name = f"stage{s + 1}.layers.{i // 2}.{i % 2}.{leaf}"
                if leaf.endswith("index"):
                    found[name] = torch.zeros(9, 9, dtype=torch.long)
                    continue
                found[name] = own[f"stages.{s}.blocks.{i}.{leaf.replace('to_qkv', 'qkv')}"]
    found |= {f"head.{leaf}": own[f"head.fc.{leaf}"] for leaf in ("weight", "bias")}
    return found


def test_released_weights_load(tmp_path: Path) -> None:
    model = tiny(num_classes=1000)
    torch.save({"model": released(model), "optimizer": {}, "epoch": 299}, tmp_path / "ckpt.pth")
    overlay = {"file": str(tmp_path / "ckpt.pth")}
    arguments = TINY | {"num_classes": 1000}
    loaded = timm.create_model(
        "shuffle_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **arguments
    ).eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    few = timm.create_model(
        "shuffle_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **TINY
    ).eval()
    x = torch.randn(1, 3, 48, 24)
    assert few(x).shape == (1, 7)
    assert torch.equal(few.forward_features(x), model.forward_features(x))


def test_own_weights_load_and_wrong_ones_are_named() -> None:
    model = tiny()
    model.pretrained_cfg["num_classes"] = 7
    own = convert(model.state_dict(), model)
    assert all(torch.equal(own[n], t) for n, t in model.state_dict().items())
    weights = released(model)
    weights["stage1.layers.0.0.extra"] = weights.pop("stage1.layers.0.1.local.bias")
    weights["head.weight"] = weights["head.weight"][:3]
    with pytest.raises(
        OfframpError,
        match=r"missing: stages\.0\.blocks\.1\.local\.bias; unexpected: "
        r"stages\.0\.blocks\.0\.extra; wrong shape: head\.fc\.weight \(3, 32\)",
    ):
        convert(weights, model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"img_size": 200}, r"200 × 200 pixels, but windows of 7 × 7 need multiples of 224"),
        ({"img_size": (224, 112)}, r"224 × 112 pixels.*multiples of 224"),
        ({"window_size": 4}, r"window_size = 4, but a depthwise kernel is odd"),
        ({"embed_dim": 100}, r"embed_dim = 100 is no multiple of head_dim = 32"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, Any], said: str) -> None:
    with torch.device("meta"), pytest.raises(OfframpError, match=said):
        timm.create_model("shuffle_tiny", **arguments)


@torch.no_grad()
def test_other_sizes_that_windows_divide_are_accepted() -> None:
    model = tiny()
    x = torch.randn(1, 3, 24, 72)
    torch.testing.assert_close(model(x), reference(model)(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(OfframpError, match=r"24 × 36 pixels, .* multiples of 24 on both sides"):
        model(torch.randn(1, 3, 24, 36))


@torch.no_grad()
def test_intermediates_are_the_stages_maps() -> None:
    model, x = tiny(), torch.randn(2, 3, 48, 24)
    last, (first, second) = model.forward_intermediates(x)
    assert first.shape == (2, 16, 12, 6)
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(second.permute(0, 2, 3, 1), last)
    (only,) = model.forward_intermediates(
        x, indices=[0], stop_early=True, output_fmt="NHWC", intermediates_only=True
    )
    assert torch.equal(only.permute(0, 3, 1, 2), first)
    with pytest.raises(OfframpError, match="NLC"):
        model.forward_intermediates(x, output_fmt="NLC")
    features = timm.create_model("shuffle_tiny", features_only=True, **TINY)
    assert features.feature_info.channels() == [16, 32]
    assert features.feature_info.reduction() == [4, 8]
    assert [tuple(y.shape[1:]) for y in features(x)] == [(16, 12, 6), (32, 6, 3)]
    assert model.prune_intermediate_layers([0]) == [0]
    assert torch.equal(model(x), only)


@torch.no_grad()
def test_classifier_can_be_replaced_and_removed() -> None:
    model, x = tiny(), torch.randn(2, 3, 48, 24)
    features = model.forward_features(x)
    pooled = features.mean((1, 2))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.num_classes == 5
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, x = tiny().train(), torch.randn(2, 3, 48, 24)
    grads = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_layers_and_tables_are_known_to_the_optimizer() -> None:
    model = tiny()
    groups = create_optimizer_v2(model, opt="adamw", weight_decay=0.1, layer_decay=0.5).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    scale, decay = {}, {}
    for group in groups:
        for parameter in group["params"]:
            scale[names[id(parameter)]] = group["lr_scale"]
            decay[names[id(parameter)]] = group["weight_decay"]
    order = ["stem.conv1.0.weight", "stages.0.blocks.0.mlp.fc1.weight"]
    order += ["stages.0.blocks.1.mlp.fc1.weight", "stages.1.downsample.reduction.weight"]
    order += ["stages.1.blocks.3.mlp.fc1.weight", "head.fc.weight"]
    scales = [scale[name] for name in order]
    assert scales == sorted(scales)
    assert len(set(scales)) >= 5
    assert decay["stages.0.blocks.0.attn.relative_position_bias_table"] == 0
    assert decay["stages.0.blocks.0.attn.qkv.weight"] == 0.1


def test_weights_start_small() -> None:
    torch.manual_seed(0)
    model = timm.create_model("shuffle_tiny", embed_dim=64, depths=(2, 2))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15), name
        elif name.endswith("bias"):
            assert not parameter.any()
