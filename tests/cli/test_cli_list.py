"""``offramp list`` reads the registries; the front door is quick."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from offramp.cli.list import Kind
from offramp.version import __version__

Offramp = Callable[..., Any]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("models", "deit_tiny_patch16_224"),
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
    names = [entry["name"] for entry in offramp("list", "models", "*", "--json").json]
    assert len(names) > 100
    assert "vit_small_patch14_reg4_dinov2" in names
    assert not any(name.startswith(("resnet", "convnext")) for name in names)


def test_patterns_with_and_without_wildcards(offramp: Offramp) -> None:
    starred = offramp("list", "models", "deit_tiny*", "--json").json
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
