"""CCT against the paper's sizes, a forward pass written out by hand, and the released layout."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offramp
import offramp.zoo
from offramp.backbones import build_backbone
from offramp.costs import count_macs
from offramp.errors import OfframpError
from offramp.zoo.cct import CCT
from offramp.zoo.cct_checkpoint import convert
from offramp.zoo.cct_layers import SequencePool

# parameters, 10⁹ MACs with attention, tokens per side
SIZES = {
    "cct_2_3x2_32": (283_723, 0.035, 8),
    "cct_4_3x2_32": (482_123, 0.050, 8),
    "cct_6_3x1_32": (3_233_803, 1.014, 16),
    "cct_6_3x2_32": (3_326_923, 0.253, 8),
    "cct_7_3x1_32": (3_760_139, 1.182, 16),
    "cct_7_3x1_32.cifar100": (3_783_269, 1.182, 16),
    "cct_7_3x2_32": (3_853_259, 0.289, 8),
    "cct_7_7x2_224": (4_573_735, 1.605, 14),
    "cct_14_7x2_224": (22_367_273, 5.522, 14),
    "cct_14_7x2_384": (22_513_193, 18.580, 24),
}
TINY: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7}


def tiny(name: str = "cct_7_3x2_32", **arguments: Any) -> CCT:
    torch.manual_seed(0)
    return timm.create_model(name, **TINY | arguments).eval()


@pytest.mark.parametrize("name", SIZES)
def test_size_is_that_of_the_paper(name: str) -> None:
    parameters, giga_macs, side = SIZES[name]
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.grid_size == (side, side)
    images = torch.zeros(1, 3, *model.img_size)
    assert count_macs(model.eval(), images) / 1e9 == pytest.approx(giga_macs, rel=0.01)


def test_published_macs_leave_attention_products_out() -> None:
    model = timm.create_model("cct_14_7x2_224").eval()
    attention = 14 * 2 * 196**2 * 384
    macs = count_macs(model, torch.zeros(1, 3, 224, 224))
    assert (macs - attention) / 1e9 == pytest.approx(5.109, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "tokenizer", "block"),
    [("cct_7_3x1_32", 6_912, 526_336), ("cct_14_7x2_224", 1_213_632, 1_478_016)],
)
def test_parts_have_the_right_size(name: str, tokenizer: int, block: int) -> None:
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.tokenizer.parameters()) == tokenizer
    assert all(sum(p.numel() for p in b.parameters()) == block for b in model.blocks)


@torch.no_grad()
def test_sequence_pool_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    pool, x = SequencePool(5), torch.randn(2, 9, 5)
    for sample, pooled in zip(x, pool(x), strict=True):
        scores = [math.exp(float(pool.score(token))) for token in sample]
        total = sum(
            (a / sum(scores) * t for a, t in zip(scores, sample, strict=True)), torch.zeros(5)
        )
        torch.testing.assert_close(pooled, total)


def by_hand(w: dict[str, Tensor], x: Tensor, *, depth: int, heads: int) -> Tensor:
    """The whole network from its released weights, one formula after the other."""
    i = 0
    while (kernel := w.get(f"tokenizer.conv_layers.{i}.0.weight")) is not None:
        k = kernel.shape[-1]
        x = F.conv2d(x, kernel, stride=max(1, k // 2 - 1), padding=max(1, k // 2))
        x, i = F.max_pool2d(x.relu(), 3, 2, 1), i + 1
    batch, dim, rows, columns = x.shape
    x = torch.stack([x[:, :, r, c] for r in range(rows) for c in range(columns)], dim=1)
    x = x + w["classifier.positional_emb"]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    for n in range(depth):
        block = f"classifier.blocks.{n}"
        qkv = linear(f"{block}.self_attn.qkv", norm(f"{block}.pre_norm", x))
        q, k, v = qkv.view(batch, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        a = (q @ k.mT / math.sqrt(dim // heads)).softmax(-1)
        mixed = (a @ v).transpose(1, 2).flatten(2)
        x = norm(f"{block}.norm1", x + linear(f"{block}.self_attn.proj", mixed))
        x = x + linear(f"{block}.linear2", F.gelu(linear(f"{block}.linear1", x)))
    x = norm("classifier.norm", x)
    a = linear("classifier.attention_pool", x).softmax(1)
    return linear("classifier.fc", (a * x).sum(1))


def released(model: CCT) -> dict[str, Tensor]:
    """Random weights under the released names, with the shapes this model has."""
    dim, hidden = model.embed_dim, model.blocks[0].mlp.fc1.out_features
    shapes: dict[str, tuple[int, ...]] = {
        f"tokenizer.conv_layers.{i}.0.weight": tuple(layer[0].weight.shape)
        for i, layer in enumerate(model.tokenizer)
    }
    shapes |= {
        "classifier.positional_emb": tuple(model.pos_embed.shape),
        "classifier.attention_pool.weight": (1, dim),
        "classifier.attention_pool.bias": (1,),
        "classifier.norm.weight": (dim,),
        "classifier.norm.bias": (dim,),
        "classifier.fc.weight": (model.num_classes, dim),
        "classifier.fc.bias": (model.num_classes,),
    }
    for n in range(len(model.blocks)):
        block = f"classifier.blocks.{n}"
        shapes |= {
            f"{block}.pre_norm.weight": (dim,),
            f"{block}.pre_norm.bias": (dim,),
            f"{block}.self_attn.qkv.weight": (3 * dim, dim),
            f"{block}.self_attn.proj.weight": (dim, dim),
            f"{block}.self_attn.proj.bias": (dim,),
            f"{block}.linear1.weight": (hidden, dim),
            f"{block}.linear1.bias": (hidden,),
            f"{block}.norm1.weight": (dim,),
            f"{block}.norm1.bias": (dim,),
            f"{block}.linear2.weight": (dim, hidden),
            f"{block}.linear2.bias": (dim,),
        }
    generator = torch.Generator().manual_seed(3)
    return {name: 0.3 * torch.randn(s, generator=generator) for name, s in shapes.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cct_7_3x1_32", {"img_size": 16}),
        ("cct_7_3x2_32", {}),
        ("cct_7_7x2_224", {"img_size": (64, 96)}),
        ("cct_14_7x2_224", {"img_size": 64, "pos_embed": "sine"}),
    ],
)
@torch.no_grad()
def test_released_weights_give_what_the_formulas_give(name: str, options: dict[str, Any]) -> None:
    model = tiny(name, **options)
    weights = released(model)
    model.load_state_dict(convert(weights, model), strict=True)
    x = torch.randn(2, 3, *model.img_size)
    torch.testing.assert_close(
        model(x), by_hand(weights, x, depth=3, heads=3), atol=1e-5, rtol=1e-5
    )


def test_conversion_is_strict() -> None:
    model = tiny()
    weights = released(model)
    wrapped = {"state_dict": {f"module.{name}": t for name, t in weights.items()}, "epoch": 3}
    assert convert(wrapped, model).keys() == model.state_dict().keys()
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in convert(own, model).items())

    missing = {k: v for k, v in weights.items() if k != "classifier.blocks.1.linear2.bias"}
    with pytest.raises(OfframpError, match=r"cct_7_3x2_32: missing: blocks\.1\.mlp\.fc2\.bias$"):
        convert(missing, model)
    with pytest.raises(OfframpError, match=r"unexpected: blocks\.3\.norm1\.weight$"):
        convert(weights | {"classifier.blocks.3.pre_norm.weight": torch.ones(24)}, model)
    with pytest.raises(OfframpError, match=r"wrong shape: norm\.bias \(5,\) instead of \(24,\)"):
        convert(weights | {"classifier.norm.bias": torch.ones(5)}, model)


@torch.no_grad()
def test_weights_file_for_other_classes_and_pixels(tmp_path: Path) -> None:
    donor = tiny("cct_7_3x1_32", num_classes=10, img_size=16)
    weights, path = released(donor), tmp_path / "cct.pth"
    torch.save(weights, path)

    def load(**options: Any) -> Any:
        arguments = {k: v for k, v in TINY.items() if k != "num_classes"}
        return build_backbone(
            "cct_7_3x1_32", pretrained=path, arguments=arguments, **options
        ).eval()

    x = torch.randn(2, 3, 16, 16)
    same = load(image_size=16, num_classes=10)
    torch.testing.assert_close(same(x), by_hand(weights, x, depth=3, heads=3), atol=1e-5, rtol=1e-5)
    other = load(image_size=16, num_classes=4)
    assert other(x).shape == (2, 4)
    assert torch.equal(other.forward_features(x), same.forward_features(x))
    wide = load(image_size=32, num_classes=10)
    assert wide.pos_embed.shape == (1, 256, 24)
    corners = wide.pos_embed.view(16, 16, 24)[::15, ::15]
    old = same.pos_embed.view(8, 8, 24)[::7, ::7]
    assert F.cosine_similarity(corners, old, dim=-1).min() > 0.9


def test_sinusoid() -> None:
    model = tiny(pos_embed="sine")
    for n, j in [(0, 0), (0, 1), (5, 6), (63, 23)]:
        angle = n / 10000 ** (2 * (j // 2) / 24)
        value = math.sin(angle) if j % 2 == 0 else math.cos(angle)
        assert float(model.pos_embed.detach()[0, n, j]) == pytest.approx(value, abs=1e-6)
    assert not model.pos_embed.requires_grad
    assert tiny().pos_embed.requires_grad
    assert float(tiny("cct_7_3x1_32").pos_embed.detach().std()) == pytest.approx(0.2, rel=0.05)
    with pytest.raises(OfframpError, match="did you mean 'sine'"):
        tiny(pos_embed="sin")


@torch.no_grad()
def test_timm_manners() -> None:
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    last, maps = model.forward_intermediates(x, indices=[0, 2])
    assert [tuple(m.shape) for m in maps] == [(2, 24, 8, 8)] * 2
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(model.norm(maps[1].flatten(2).mT), last)
    assert torch.equal(model.forward_head(last), model(x))
    assert model.forward_head(last, pre_logits=True).shape == (2, 24)
    rows = model.forward_intermediates(
        x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True, stop_early=True
    )
    assert torch.equal(rows[0], last)

    features = tiny(features_only=True, out_indices=(0, 1))
    assert [tuple(m.shape) for m in features(x)] == [(2, 24, 8, 8)] * 2
    assert torch.equal(features(x)[0], maps[0])
    assert features.feature_info.reduction() == [4, 4]
    assert features.feature_info.channels() == [24, 24]

    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(last, pre_logits=True))
    assert isinstance(model.get_classifier(), nn.Identity)
    with pytest.raises(OfframpError, match=r"images of \(24, 24\) .*built for \(32, 32\)"):
        model(torch.zeros(1, 3, 24, 24))


def test_pretrained_cfg_names_layers_that_exist() -> None:
    model = timm.create_model("cct_7_3x1_32.cifar100")
    config = model.pretrained_cfg
    assert model.get_submodule(config["first_conv"]).in_channels == 3
    assert model.get_submodule(config["classifier"]).out_features == config["num_classes"] == 100
    assert offramp.create(model, exits=[]).preprocessing.mean == (0.5071, 0.4867, 0.4408)
    with pytest.raises(OfframpError, match="no weights for cct_7_3x1_32"):
        build_backbone("cct_7_3x1_32", pretrained=True)


def test_gradients_reach_everything_and_checkpointing_changes_nothing() -> None:
    model = tiny(attn_drop_rate=0.0, drop_path_rate=0.0).train()
    x = torch.randn(2, 3, 32, 32)
    grads = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)
