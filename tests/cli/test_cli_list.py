"""``offramp list`` reads the registries; the front door is quick."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.catalogue import model_facts, supported_models, weights_are_local
from offramp.cli.list import Kind
from offramp.cli.list_models import spans
from offramp.errors import OfframpError
from offramp.version import __version__

Offramp = Callable[..., Any]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("exits", "lph"),
        ("exits", "lgvit"),
        ("policies", "patience"),
        ("recipes", "joint"),
        ("datasets", "digits-grid"),
        ("engines", "torch"),
    ],
)
def test_registered_names_are_listed(offramp: Offramp, kind: str, name: str) -> None:
    entries = {entry["name"]: entry["summary"] for entry in offramp("list", kind, "--json").json}
    assert entries[name]
    assert name in offramp("list", kind, name).out


def test_every_kind_can_be_listed(offramp: Offramp) -> None:
    assert all(offramp("list", kind.value).code == 0 for kind in Kind)


def test_models_are_those_of_supported_families(offramp: Offramp) -> None:
    entries = {e["name"]: e["family"] for e in offramp("list", "models", "*", "--json").json}
    assert len(entries) > 500
    assert entries == supported_models()
    assert entries["vit_small_patch14_reg4_dinov2"] == "vit"
    assert entries["tf_efficientnet_b7"] == entries["mobilenetv3_small_050"] == "efficientnet"
    assert entries["mobilevit_s"] == "byobnet"
    assert entries["hiera_tiny_224"] == "hiera"  # its function does not say what it returns
    assert entries["cct_7_3x1_32"] == "cct"  # not timm's own
    assert not any(name.startswith(("resnet18", "densenet", "vgg")) for name in entries)


def test_a_few_models_are_described(offramp: Offramp) -> None:
    """DeiT-tiny: 5,717,416 parameters, 1.254 G; LGViT's eight exits stand behind blocks 4…11."""
    (entry,) = offramp("list", "models", "deit_tiny_patch16_224", "--json").json
    assert entry == {
        "name": "deit_tiny_patch16_224",
        "family": "vit",
        "image_size": [224, 224],
        "parameters": 5_717_416,
        "macs": 1_253_683_200,
        "blocks": 12,
        "default_exits": [4, 5, 6, 7, 8, 9, 10, 11],
        "weights_local": weights_are_local("deit_tiny_patch16_224"),
    }
    out = offramp("list", "models", "deit_tiny_patch16_224").out
    assert out.startswith("1 models and the blocks their exits follow")
    row = next(line for line in out.splitlines() if "deit_tiny" in line).split()
    assert row[:9] == [
        "deit_tiny_patch16_224",
        "vit",
        "224",
        "5.72",
        "M",
        "1.25",
        "G",
        "12",
        "4–11",
    ]


def test_details_are_a_matter_of_number_unless_asked(offramp: Offramp) -> None:
    plain = {"name", "family"}
    (named,) = offramp("list", "models", "mobilevit_xxs", "--names", "--json").json
    assert set(named) == plain
    many = offramp("list", "models", "efficientnet*", "--json").json
    assert len(many) > 20
    assert all(set(entry) == plain for entry in many)
    described = offramp("list", "models", "mobilevit_x*s", "--details", "--json").json
    assert [entry["blocks"] for entry in described] == [19, 19]


def test_a_model_that_is_no_chain_says_why(
    offramp: Offramp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise OfframpError(f"[{name}] has no grid")

    monkeypatch.setattr("offramp.catalogue.model_facts", refuse)
    (entry,) = offramp("list", "models", "hiera_tiny_224", "--json").json
    assert entry["error"] == "[hiera_tiny_224] has no grid"
    assert "[hiera_tiny_224] has no grid" in offramp("list", "models", "hiera_tiny_224").out


def test_local_weights_are_found_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--timm--mobilevit_xxs.cvnets_in1k"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not weights_are_local("mobilevit_xxs")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    assert not weights_are_local("mobilevit_xxs")
    (folder / "snapshots" / ("0" * 40) / "model.safetensors").touch()
    assert weights_are_local("mobilevit_xxs")
    assert not weights_are_local("mobilevit_xs")
    assert model_facts("mobilevit_xxs").weights_local


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ({"url": "https://nowhere.example/a/net-1234.pth"}, "checkpoints/net-1234.pth"),
        ({"hf_hub_id": "some/net@v2", "hf_hub_filename": "net.bin"}, None),
        ({"file": "FOLDER/net.pth", "url": "https://nowhere.example/other.pth"}, "net.pth"),
        ({}, None),
    ],
)
def test_local_weights_of_other_sources(
    source: dict[str, str], file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.models import PretrainedCfg

    fields = {key: value.replace("FOLDER", str(tmp_path)) for key, value in source.items()}
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name: PretrainedCfg(**fields))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not weights_are_local("net")
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
        assert weights_are_local("net")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([4, 5, 6, 9], "4–6, 9"), ([1, 3, 4], "1, 3–4"), ([1, 2, 5], "1–2, 5")],
)
def test_runs_of_numbers_are_drawn_together(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def test_patterns_with_and_without_wildcards(offramp: Offramp) -> None:
    starred = offramp("list", "models", "deit_tiny*", "--names", "--json").json
    assert starred
    assert all(entry["name"].startswith("deit_tiny") for entry in starred)
    plain = [entry["name"] for entry in offramp("list", "policies", "conf", "--json").json]
    assert plain == ["confidence"]
    assert "no policies match" in offramp("list", "policies", "xyz").out


def test_help_of_every_command_has_an_example(offramp: Offramp) -> None:
    for command in ("demo", "train", "eval", "calibrate", "bench", "predict", "report", "list"):
        answer = offramp(command, "--help")
        assert answer.code == 0
        assert f"Example: offramp {command}" in answer.out


def test_version(offramp: Offramp) -> None:
    assert offramp("--version").out.strip() == f"offramp {__version__}"


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['offramp', '--help']\n"
        "from offramp.cli.main import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'pydantic', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
