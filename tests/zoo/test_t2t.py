"""T2T-ViT against the paper's sizes, kernels written out, a plain twin, and released names."""

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from families import enliven
from offramp.backbones import build_backbone
from offramp.costs import count_macs
from offramp.errors import OfframpError
from offramp.zoo.t2t import T2TViT, convert
from offramp.zoo.t2t_tokens import Performer, SoftmaxAttention, soft_split

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "references"
PLAIN = runpy.run_path(str(REFERENCES / "t2t.py"))
reference: Callable[[Any], nn.Module] = PLAIN["reference"]
as_unfolded: Callable[[str, Tensor], Tensor] = PLAIN["as_unfolded"]

# parameters, of them trainable, 10⁹ MACs, parameters of tokens-to-token and of one block
SIZES = {
    "t2t_vit_7": (4_310_222, 4_255_694, 1.147, 317_670, 526_336),
    "t2t_vit_10": (5_889_230, 5_834_702, 1.516, 317_670, 526_336),
    "t2t_vit_12": (6_941_902, 6_887_374, 1.763, 317_670, 526_336),
    "t2t_vit_14": (21_545_550, 21_465_806, 4.783, 391_526, 1_478_016),
    "t2t_vit_19": (39_177_422, 39_085_070, 8.480, 428_454, 2_011_072),
    "t2t_vit_24": (64_105_934, 64_000_974, 13.662, 465_382, 2_626_048),
    "t2t_vit_t_14": (21_541_070, 21_465_422, 6.089, 387_046, 1_478_016),
    "t2t_vit_t_19": (39_172_942, 39_084_686, 9.785, 423_974, 2_011_072),
    "t2t_vit_t_24": (64_101_454, 64_000_590, 14.967, 460_902, 2_626_048),
}
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "token_dim": 8,
    "img_size": (64, 48),
    "num_classes": 7,
}
TINY_BODY = {key: value for key, value in TINY.items() if key != "num_classes"}
KINDS = ("t2t_vit_7", "t2t_vit_t_14")


def tiny(name: str = "t2t_vit_7", **arguments: Any) -> T2TViT:
    torch.manual_seed(0)
    return enliven(timm.create_model(name, **TINY | arguments)).eval()


def on_meta(name: str, **arguments: Any) -> T2TViT:
    with torch.device("meta"):
        return timm.create_model(name, **arguments).eval()


def size(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def macs(module: nn.Module, side: int = 224) -> float:
    return count_macs(module, torch.empty(1, 3, side, side, device="meta")) / 1e9


@pytest.mark.parametrize("name", SIZES)
def test_size_is_that_of_the_paper(name: str) -> None:
    parameters, trainable, giga_macs, tokens, block = SIZES[name]
    model = on_meta(name)
    assert size(model) == parameters
    assert size(model, trainable=True) == trainable
    assert size(model.patch_embed) == tokens
    assert {size(b) for b in model.blocks} == {block}
    assert macs(model) == pytest.approx(giga_macs, abs=6e-4)


def test_making_tokens_costs_a_quarter_of_the_smallest_model() -> None:
    model = on_meta("t2t_vit_7")
    assert macs(model.patch_embed) == pytest.approx(0.285, abs=6e-4)
    layers = model.patch_embed.layers
    assert [size(layer) for layer in layers] == [43_366, 126_592]
    assert [size(layer) for layer in on_meta("t2t_vit_t_14").patch_embed.layers] == [
        41_126,
        124_352,
    ]


def test_larger_images_cost_more_positions() -> None:
    model = on_meta("t2t_vit_14", img_size=384)
    assert size(model) == 21_691_470
    assert macs(model, 384) == pytest.approx(16.37, abs=6e-3)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1)])
@pytest.mark.parametrize("shape", [(16, 16), (17, 30), (9, 20)])
def test_soft_split_unfolds(kernel: int, stride: int, padding: int, shape: tuple[int, int]) -> None:
    x = torch.randn(2, 5, *shape)
    windows = soft_split(x.permute(0, 2, 3, 1), kernel, stride, padding)
    unfolded = F.unfold(x, kernel, stride=stride, padding=padding)  # (B, C·k·k, N)
    expected = unfolded.unflatten(1, (5, kernel * kernel)).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(windows.flatten(1, 2), expected)


@torch.no_grad()
def test_performer_sums_the_kernels_of_all_pairs() -> None:
    torch.manual_seed(0)
    layer = enliven(Performer(10, 8)).eval().double()
    x = torch.randn(2, 6, 10, dtype=torch.float64)
    k, q, v = (layer.kqv(x)[..., 8 * i : 8 * i + 8] for i in range(3))  # in this order

    def phi(z: Tensor) -> Tensor:
        squares = float(z @ z)
        return torch.stack([torch.exp(w @ z - squares / 2) for w in layer.w]) / math.sqrt(4)

    for b in range(2):
        for i in range(6):
            kernel = [float(phi(q[b, i]) @ phi(k[b, j])) for j in range(6)]
            attended = sum((a * v[b, j] for j, a in enumerate(kernel)), torch.zeros(8))
            expected = v[b, i] + layer.proj((attended / (sum(kernel) + 1e-8)).unsqueeze(0))[0]
            torch.testing.assert_close(layer(x)[b, i], expected, atol=1e-12, rtol=1e-10)


@torch.no_grad()
def test_performer_survives_keys_without_weight() -> None:
    """Long vectors have features near zero: ε keeps the quotient finite, as in the formula."""
    layer = Performer(4, 4).eval()
    layer.kqv.weight.normal_(std=30)
    assert layer(torch.randn(1, 5, 4)).isfinite().all()


def test_projection_is_orthogonal_and_its_rows_long() -> None:
    for layer in timm.create_model("t2t_vit_7").patch_embed.layers:
        w = layer.attn.w
        assert w.shape == (32, 64)
        torch.testing.assert_close(w @ w.T, 32 * torch.eye(32), atol=1e-3, rtol=0)


@torch.no_grad()
def test_softmax_layer_is_scaled_by_its_input_width() -> None:
    torch.manual_seed(0)
    layer, x = enliven(SoftmaxAttention(10, 4)).eval(), torch.randn(2, 6, 10)
    q, k, v = layer.qkv(x).chunk(3, -1)
    weights = (q @ k.mT / math.sqrt(10)).softmax(-1)
    torch.testing.assert_close(layer(x), v + layer.proj(weights @ v))


@pytest.mark.parametrize("shape", [(224, 224), (64, 96)])
def test_positions_are_a_sinusoid(shape: tuple[int, int]) -> None:
    model = timm.create_model("t2t_vit_7", img_size=shape, depth=1)
    assert model.pos_embed.shape == (1, 1 + shape[0] * shape[1] // 256, 256)
    for position in (0, 1, 7, model.pos_embed.shape[1] - 1):
        for j in (0, 1, 2, 31, 128, 255):
            angle = position / 10000 ** (2 * (j // 2) / 256)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert float(model.pos_embed[0, position, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_forward_equals_the_plain_twin(name: str) -> None:
    model, x = tiny(name), torch.randn(3, 3, 64, 48)
    expected = reference(model)(x)
    assert expected.std(0).min() > 0.1
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_real_size_equals_the_plain_twin(name: str) -> None:
    torch.manual_seed(0)
    model, x = timm.create_model(name).eval(), torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model(x), reference(model)(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_equal_the_plain_twins(name: str) -> None:
    model, x = tiny(name), torch.randn(2, 3, 64, 48)
    twin = reference(model)
    for net in (model, twin):
        net(x).square().sum().backward()
    for key, parameter in twin.named_parameters():
        own = model.get_parameter(key)
        if own.requires_grad:
            assert own.grad is not None
            assert parameter.grad is not None
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(
                as_unfolded(key, own.grad), parameter.grad, atol=1e-4 * (1 + scale), rtol=1e-3
            )


def test_fixed_parts_stay_fixed_when_everything_is_switched_on() -> None:
    model = tiny().train()
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {"pos_embed", *(f"patch_embed.layers.{i}.attn.w" for i in (0, 1))}
    model.requires_grad_(True)
    model(torch.randn(2, 3, 64, 48)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None} == fixed


def test_token_layers_drop_out_as_in_the_paper() -> None:
    def rates(name: str, **arguments: Any) -> set[float]:
        embed = tiny(name, **arguments).patch_embed
        return {m.p for m in embed.modules() if isinstance(m, nn.Dropout)} - {0.0}

    assert rates("t2t_vit_7") == {0.1}
    assert rates("t2t_vit_t_14") == set()
    assert rates("t2t_vit_7", token_drop_rate=0.3) == {0.3}
    model = tiny().train()
    x = torch.randn(1, 3, 64, 48)
    assert not torch.equal(model(x), model(x))


def test_drop_path_grows_with_depth() -> None:
    model = tiny(depth=5, drop_path_rate=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def released(model: T2TViT) -> dict[str, Tensor]:
    """The model's weights under the released names; windows are unfolded channel by channel."""
    performer = hasattr(model.patch_embed.layers[0].attn, "w")
    found = {}
    for name, tensor in reference(model).state_dict().items():
        name = name.replace("patch_embed.layers.0.", "tokens_to_token.attention1.")
        name = name.replace("patch_embed.layers.1.", "tokens_to_token.attention2.")
        name = name.replace("patch_embed.", "tokens_to_token.")
        if performer and name.startswith("tokens_to_token.attention"):
            name = name.replace(".attn.", ".")
            name = name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2")
        found[name] = tensor
    return found


def test_released_names_are_those_of_the_card() -> None:
    names = {n.removeprefix("tokens_to_token.") for n in released(tiny()) if "token." in n}
    parts = ("kqv", "proj", "norm1", "norm2", "mlp.0", "mlp.2")
    leaves = [f"{part}.{leaf}" for part in parts for leaf in ("weight", "bias")]
    layers = {f"attention{i}.{leaf}" for i in (1, 2) for leaf in (*leaves, "w")}
    assert names == {*layers, "project.weight", "project.bias"}


@pytest.mark.parametrize("name", KINDS)
def test_released_weights_load(name: str, tmp_path: Path) -> None:
    model = tiny(name, num_classes=1000)
    weights = {f"module.{n}": t for n, t in released(model).items()}
    useless = {n: torch.zeros(1) for n in weights}
    path = tmp_path / "T2T_ViT.pth.tar"
    torch.save({"state_dict": useless, "state_dict_ema": weights, "epoch": 309}, path)
    arguments = TINY | {"num_classes": 1000}
    overlay = {"file": str(path)}
    loaded = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
    ).eval()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    x = torch.randn(1, 3, 64, 48)
    few = build_backbone(name, pretrained=path, num_classes=7, arguments=TINY_BODY).eval()
    assert few(x).shape == (1, 7)
    assert torch.equal(few.forward_features(x), model.forward_features(x))


def test_weights_of_another_image_size_get_new_positions() -> None:
    model = tiny(num_classes=1000)
    weights = released(model)
    larger = timm.create_model("t2t_vit_7", **TINY | {"num_classes": 1000, "img_size": 96})
    state = convert(weights, larger)
    assert torch.equal(state["pos_embed"], larger.pos_embed)
    assert larger.pos_embed.shape[1] == 37
    larger.load_state_dict(state)
    weights["pos_embed"] = torch.randn(1, 13, 24)  # of this size: what was learned with is kept
    assert torch.equal(convert(weights, model)["pos_embed"], weights["pos_embed"])


@torch.no_grad()
def test_image_size_can_be_changed() -> None:
    model = tiny()
    larger = tiny(img_size=(96, 64))
    model.set_input_size((96, 64))
    assert model.patch_embed.grid_size == (6, 4)
    assert not model.pos_embed.requires_grad
    state = model.state_dict()
    assert torch.equal(state["pos_embed"], larger.pos_embed)
    larger.load_state_dict(state)
    x = torch.randn(1, 3, 96, 64)
    assert torch.equal(model(x), larger(x))
    with pytest.raises(OfframpError, match=r"images of \(64, 48\).*built for \(96, 64\)"):
        model(torch.randn(1, 3, 64, 48))


@pytest.mark.parametrize("shape", [(64, 48), (50, 70), (33, 40)])
@torch.no_grad()
def test_grid_is_what_the_splits_leave(shape: tuple[int, int]) -> None:
    model = tiny(img_size=shape)
    embed = model.patch_embed
    tokens = embed(torch.randn(1, 3, *shape))
    assert tokens.shape == (1, embed.num_patches, 24)
    assert embed.grid_size == embed.dynamic_feat_size(shape)
    x = torch.randn(2, 3, *shape)
    torch.testing.assert_close(model(x), reference(model)(x), atol=1e-4, rtol=1e-4)


def test_own_weights_load_and_wrong_ones_are_named() -> None:
    model = tiny()
    model.pretrained_cfg["num_classes"] = 7
    own = convert(model.state_dict(), model)
    assert all(torch.equal(own[n], t) for n, t in model.state_dict().items())
    weights = released(model)
    weights["tokens_to_token.attention3.w"] = weights.pop("tokens_to_token.attention2.w")
    weights["tokens_to_token.attention1.kqv.weight"] = torch.zeros(24, 100)
    with pytest.raises(
        OfframpError,
        match=r"missing: patch_embed\.layers\.1\.attn\.w; unexpected: "
        r"patch_embed\.attention3\.w; wrong shape: patch_embed\.layers\.0\.attn\.kqv\.weight",
    ):
        convert(weights, model)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(OfframpError, match=r"token layer 'perfomer' .*did you mean 'performer'"):
        tiny(token_layer="perfomer")
    with pytest.raises(OfframpError, match=r"patch_size = 8, but tokens-to-token has 16"):
        tiny().set_input_size(64, patch_size=8)


@torch.no_grad()
def test_timms_manners_are_inherited() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 48)
    last, maps = model.forward_intermediates(x, indices=2)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 4, 3)] * 2
    assert torch.equal(last, model.forward_features(x))
    features = timm.create_model("t2t_vit_7", features_only=True, **TINY)
    assert features.feature_info.reduction() == [16] * 3
    assert model.pretrained_cfg["architecture"] == "t2t_vit_7"
    assert model.get_classifier() is model.head
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    assert {"pos_embed", "cls_token"} <= model.no_weight_decay()
    assert tiny(in_chans=1)(x[:, :1]).shape == (2, 7)
    assert tiny(global_pool="avg")(x).shape == (2, 7)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, x = tiny(), torch.randn(2, 3, 64, 48)
    grads = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len([p for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
