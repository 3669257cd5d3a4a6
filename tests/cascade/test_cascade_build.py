"""`offramp.cascade`: models and folders put together, saved, loaded, shared, and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cascade_pairs import CLASSES, big, pictures, small, smaller, vit

import offramp
from offramp.cascades.sizes import resized
from offramp.chains.cascade import CascadeChain
from offramp.errors import OfframpError
from offramp.files import read_tensors
from offramp.model import MultiExitModel
from offramp.zoo import cascade as zoo


def conv(size: int = 64) -> MultiExitModel:
    torch.manual_seed(0)
    return offramp.create(
        "test_efficientnet", exits=[], num_classes=CLASSES, image_size=size
    ).eval()


@torch.no_grad()
def same(one: MultiExitModel, other: MultiExitModel) -> None:
    x = pictures(3, one.chain.image_size[0])
    assert one.fingerprint() == other.fingerprint()
    for said, expected in zip(other(x), one(x), strict=True):
        assert torch.equal(said.logits, expected.logits)


@pytest.mark.parametrize("average", [False, True])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, average: bool) -> None:
    model = offramp.cascade([small(), vit(48, 3, 48, mean=0.3)], average=average)
    model.save_pretrained(tmp_path)
    same(model, offramp.load(tmp_path))
    assert isinstance(offramp.load(tmp_path).chain, CascadeChain)


@torch.no_grad()
def test_one_model_at_two_sizes_stores_its_weights_once(tmp_path: Path) -> None:
    alone, x = vit(48, 3, 48), pictures()
    model = offramp.cascade([alone, alone], sizes=[32, 48])
    assert model.exit_names == ["model 1", "final"]
    first, last = (said.logits for said in model(x))
    assert torch.equal(last, alone.backbone(x))
    twin = resized(alone, (32, 32))
    assert twin.own == ("pos_embed",)
    assert torch.equal(first, twin.module(smaller(x)))
    assert not torch.allclose(first, last, atol=1e-2)
    weights = sum(p.numel() for p in alone.backbone.parameters())
    extra = twin.module.pos_embed.numel()
    assert sum(p.numel() for p in model.parameters()) == weights + extra
    model.save_pretrained(tmp_path)
    stored = read_tensors(tmp_path / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == weights + extra
    again = offramp.load(tmp_path)
    same(model, again)
    blocks: Any = [member.model.blocks[0].mlp.fc1.weight for member in again.backbone.members]
    assert blocks[0] is blocks[1]


@torch.no_grad()
def test_twins_of_a_size_that_is_not_in_the_cascade(tmp_path: Path) -> None:
    alone = vit(24, 2, 64)
    model = offramp.cascade([alone, alone, big()], sizes=[32, 48, None])
    assert [s and (s.of, s.own) for s in model.backbone.shared] == [None, (0, ("pos_embed",)), None]
    x = pictures()
    assert torch.equal(model(x)[0].logits, resized(alone, (32, 32)).module(smaller(x)))
    assert torch.equal(model(x)[1].logits, resized(alone, (48, 48)).module(x))
    model.save_pretrained(tmp_path)
    same(model, offramp.load(tmp_path))


def test_models_of_any_size_share_everything(tmp_path: Path) -> None:
    alone = conv()
    model = offramp.cascade([alone, alone], sizes=[32, 64])
    assert model.backbone.shared[0].own == ()
    assert not any(key.startswith("chain.backbone.members.0") for key in model.state_dict())
    model.save_pretrained(tmp_path)
    same(model, offramp.load(tmp_path))


def test_folders_will_do_and_are_loaded_once(tmp_path: Path) -> None:
    vit(48, 3, 48).save_pretrained(tmp_path / "one")
    model = offramp.cascade([tmp_path / "one", str(tmp_path / "one")], sizes=[32, None])
    assert model.backbone.shared[0].of == 1


@torch.no_grad()
def test_trained_heads_come_along_or_stay_behind() -> None:
    one, two = small(), big()
    model = offramp.cascade([one, two])
    assert [spec.head for spec in model.config.exits] == ["linear", "member", "linear"]
    assert [spec.after for spec in model.config.exits] == [1, 2, 4]
    assert model.parameter_counts()["exits"] == sum(
        m.parameter_counts()["exits"] for m in (one, two)
    )
    bare = offramp.cascade([one, two], exits=False)
    assert [spec.head for spec in bare.config.exits] == ["member"]


def test_a_recipe_can_describe_one() -> None:
    arguments = {"patch_size": 8, "embed_dim": 24, "num_heads": 3}
    members = [
        {"backbone": "vit_tiny_patch16_224", "arguments": arguments | {"depth": d}, "image_size": s}
        for d, s in ((1, 16), (2, 32))
    ]
    model = offramp.create(
        "cascade",
        exits=[{"after": 1, "head": "member"}],
        num_classes=4,
        backbone_args={"members": members, "average": True},
    )
    assert model.chain.ends == (1, 3)
    assert model.preprocessing.image_size == (32, 32)
    assert model(torch.zeros(1, 3, 32, 32))[0].logits.shape == (1, 4)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([{"backbone": "vit_tiny_patch16_224"}], "needs two at least"),
        ([{"backbone": "vit_tini"}, {}], r"members.1.backbone: field required"),
        ([{"backbone": "vit_tini"}, {"backbone": "vit_tini"}], "unknown model 'vit_tini'"),
        (
            [{"backbone": "test_efficientnet", "image_size": 64, "shares": s} for s in (1, 0)],
            r"members\[0\].shares = 1, but it must be the number of another member",
        ),
        (
            [
                {"backbone": "test_efficientnet", "image_size": 64, "shares": 1},
                {"backbone": "test_vit", "image_size": 64},
            ],
            "EfficientNet cannot share",
        ),
    ],
)
def test_bad_descriptions_are_named(members: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(OfframpError, match=sentence):
        offramp.create("cascade", exits=[], num_classes=4, backbone_args={"members": members})


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    one, two = small(), big()
    with pytest.raises(OfframpError, match="cascade of 1 models"):
        offramp.cascade([one])
    with pytest.raises(OfframpError, match="2 models, but sizes for 1"):
        offramp.cascade([one, two], sizes=[32])
    with pytest.raises(OfframpError, match="model 2 stands in the cascade twice at 32 px"):
        offramp.cascade([one, one])
    other = vit(size=48)
    other.config = other.config.model_copy(update={"num_classes": 7})
    with pytest.raises(OfframpError, match="num_classes of model 2 is 7, and 10 in the first"):
        offramp.cascade([one, other])
    names = [f"class {i}" for i in range(CLASSES)]
    with pytest.raises(OfframpError, match="labels of model 2"):
        offramp.cascade([vit(labels=names), vit(size=48, labels=names[::-1])])
    with pytest.raises(OfframpError, match="model 2 is a cascade itself"):
        offramp.cascade([vit(seed=5), offramp.cascade([one, two])])
    with pytest.raises(OfframpError, match="no such folder"):
        offramp.cascade([tmp_path / "nothing", one])
    torch.manual_seed(0)
    t2t = offramp.create(
        "t2t_vit_7",
        exits=[],
        num_classes=CLASSES,
        image_size=48,
        backbone_args={"embed_dim": 24, "depth": 1, "num_heads": 3, "token_dim": 8},
    )
    with pytest.raises(OfframpError, match="cannot go to 32 px: its pos_embed"):
        resized(t2t, (32, 32))
    given = offramp.create(two.backbone, exits=[], image_size=48)
    with pytest.raises(OfframpError, match="given as an object"):
        offramp.cascade([given, given], sizes=[32, 48])
    with pytest.raises(OfframpError, match="no weights file of its own"):
        zoo.cascade(pretrained_cfg_overlay={"file": "weights.pth"})
