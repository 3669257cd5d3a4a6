"""Backbones that start from what Offramp wrote: a run's folder, its plain stage's file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from offramp.backbones import build_backbone
from offramp.errors import OfframpError
from offramp.files import write_tensors
from tiny import TINY, tiny_model


def built(path: Path, **changes: Any) -> torch.nn.Module:
    options = {"num_classes": 10, "image_size": 32, "arguments": TINY} | changes
    return build_backbone("deit_tiny_patch16_224", pretrained=str(path), **options)


def test_a_run_lends_its_backbone_with_its_classifier(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    expected = model.backbone.state_dict()
    found = built(tmp_path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_plain_backbones_file_is_loaded_as_it_is(tmp_path: Path) -> None:
    expected = tiny_model().backbone.state_dict()
    write_tensors(tmp_path / "plain-backbone.safetensors", dict(expected))
    found = built(tmp_path / "plain-backbone.safetensors").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_other_classes_get_a_new_classifier_on_the_same_trunk(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    other = built(tmp_path, num_classes=7)
    assert other.head.out_features == 7
    for name, value in model.backbone.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize("changes", [{"image_size": 48}, {"arguments": TINY | {"depth": 3}}])
def test_another_backbone_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(OfframpError, match="its backbone is another, or for another image size"):
        built(tmp_path, **changes)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=r"model\.safetensors: no such file"):
        built(tmp_path)
