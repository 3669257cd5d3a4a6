"""Image classifiers of transformers: recognised by name, answered in logits, measured whole."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import offramp
from families import HF_SWIN, HF_VIT, VARIANTS, enliven, from_transformers
from offramp.costs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.model_config import Preprocessing

NAMES = [name for name in VARIANTS if name.startswith("hf ")]
# variant → class tokens, prefix tokens, classifiers, mean, interpolation, crop
SAYS: dict[str, tuple[int, int, int, float, str, float]] = {
    "hf vit": (1, 1, 1, 0.5, "bilinear", 1.0),
    "hf deit": (1, 2, 1, 0.485, "bicubic", 0.875),
    "hf deit with teacher": (2, 2, 2, 0.485, "bicubic", 0.875),
    "hf dinov2": (1, 1, 1, 0.485, "bicubic", 0.875),
    "hf swin": (0, 0, 1, 0.485, "bicubic", 1.0),
}


def multi_exit(name: str, **options: Any) -> MultiExitModel:
    variant = VARIANTS[name]
    options = {"exits": "linear", "at": [1, 2], "image_size": variant.image_size} | options
    return offramp.create(variant.make(), **options).eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_chain_says_what_the_answer_holds(name: str) -> None:
    class_tokens, prefix, classifiers, mean, interpolation, crop = SAYS[name]
    model = multi_exit(name)
    chain, x = model.chain, torch.randn(3, 3, *VARIANTS[name].image_size)
    answer = model.backbone(x)
    assert not isinstance(answer, torch.Tensor)
    assert torch.equal(chain.whole(x), answer.logits)
    assert torch.equal(model(x)[-1][0], answer.logits)
    tokens = chain.tokens(chain.embed(x), 0)
    assert (tokens.class_tokens, tokens.prefix.shape[1]) == (class_tokens, prefix)
    assert chain.classifier_heads == classifiers
    assert model.preprocessing.mean[0] == mean
    assert model.preprocessing.interpolation == interpolation
    assert model.preprocessing.crop_pct == crop


@pytest.mark.parametrize("name", ["hf vit", "hf swin"])
def test_costs_of_the_pieces_add_up_to_the_whole(name: str) -> None:
    model = multi_exit(name)
    costs = model_costs(model)
    assert sum(costs.body) + costs.head[-1] == costs.full


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["ViT", "Swin"])
@torch.no_grad()
def test_every_attention_is_the_model_s_own(name: str, attention: str) -> None:
    arguments = HF_VIT if name == "ViT" else HF_SWIN
    torch.manual_seed(0)
    build = from_transformers(f"{name}ForImageClassification", f"{name}Config", **arguments)
    model = enliven(build()).eval()
    model.set_attn_implementation(attention)
    chain = offramp.chain(model)
    x = torch.randn(2, 3, *chain.image_size)
    assert torch.equal(chain(x), model(x).logits)


@torch.no_grad()
def test_saved_and_loaded_with_the_object(tmp_path: Path) -> None:
    model = multi_exit("hf swin")
    model.save_pretrained(tmp_path)
    other = VARIANTS["hf swin"].build()
    again = MultiExitModel.from_pretrained(tmp_path, backbone=other)
    x = torch.randn(2, 3, 60, 60)
    assert again.backbone is other
    for before, after in zip(model(x), again(x), strict=True):
        assert torch.equal(before[0], after[0])


@torch.no_grad()
def test_images_are_cast_as_the_model_casts_them() -> None:
    model = VARIANTS["hf vit"].make().bfloat16()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(offramp.chain(model)(x), model(x).logits)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hf dinov2"])
def test_another_size_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(OfframpError, match=r"\(64, 64\).*build it with image_size=… in its config"):
        offramp.chain(VARIANTS[name].make(), image_size=64)


def test_a_model_without_classifier_is_refused() -> None:
    build = from_transformers("ViTForImageClassification", "ViTConfig", **(HF_VIT))
    model: Any = build()
    model.num_labels = 0
    with pytest.raises(OfframpError, match="has no classifier"):
        offramp.create(model)


def test_class_names_come_with_the_object_but_placeholders_do_not(tmp_path: Path) -> None:
    module: Any = VARIANTS["hf vit"].make()
    assert offramp.create(module).labels is None
    names = [f"kind {k}" for k in range(module.num_labels)]
    module.config.id2label = dict(enumerate(names))
    model = offramp.create(module)
    assert model.labels == names
    assert offramp.create(module, labels=names[::-1]).labels == names[::-1]
    model.save_pretrained(tmp_path)
    assert "base_model" not in (tmp_path / "README.md").read_text()


def test_an_image_processor_says_how_images_are_prepared() -> None:
    from transformers import BitImageProcessor, ViTImageProcessor

    processor = BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48})
    prepared = multi_exit("hf dinov2", preprocessing=processor).preprocessing
    assert prepared.image_size == (24, 48)
    assert prepared.crop_pct == 0.75
    assert prepared.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert prepared.interpolation == "bicubic"
    squeezing = ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], resample=0)
    prepared = multi_exit("hf vit", preprocessing=squeezing).preprocessing
    assert prepared.mean == (0.1, 0.2, 0.3)
    assert prepared.interpolation == "nearest"
    assert prepared.crop_pct == 1.0
    raw = ViTImageProcessor(do_normalize=False)
    assert multi_exit("hf vit", preprocessing=raw).preprocessing.std == (1.0, 1.0, 1.0)
    own = Preprocessing(image_size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    assert multi_exit("hf vit", preprocessing=own).preprocessing == own


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"do_rescale": False}, "do_rescale = False"), ({"rescale_factor": 1.0}, "factor = 1")],
)
def test_processors_of_another_range_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    from transformers import ViTImageProcessor

    with pytest.raises(OfframpError, match=sentence):
        multi_exit("hf vit", preprocessing=ViTImageProcessor(**arguments))


def test_what_is_no_processor_is_refused() -> None:
    with pytest.raises(OfframpError, match="preprocessing = dict, but it must be"):
        multi_exit("hf vit", preprocessing={"mean": 0})


def test_nothing_is_imported_to_recognise_a_model() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, offramp\n"
        "try: offramp.chain(torch.nn.Linear(1, 1))\n"
        "except offramp.OfframpError as error: print('hf_vit' in str(error))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"
