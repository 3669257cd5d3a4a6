"""The package itself: quick to import, complete in its face, safe in its files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import offramp
from offramp.errors import OfframpError, suggest
from offramp.files import (
    read_json,
    read_tensors,
    tensor_digest,
    tensors_metadata,
    write_atomic,
    write_json,
    write_tensors,
)
from offramp.registry import Registry


def test_every_public_name_can_be_had() -> None:
    for name in offramp.__all__:
        assert getattr(offramp, name) is not None
        assert name in dir(offramp)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(offramp, "noth" + "ing")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, offramp, offramp.cli.main\n"
        "heavy = {'torch', 'timm', 'torchvision', 'accelerate', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_torchvision_can_be_imported_in_a_fresh_process() -> None:
    code = "from offramp import vision_cure as c; c.ensure(); c.ensure(); import timm, torchvision"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registry_names_entries_and_refuses_twins() -> None:
    registry: Registry[type] = Registry("thing")

    @registry.register("first")
    class First:
        """The first thing.

        More about it."""

    assert registry.get("first") is First
    assert registry.names() == ["first"]
    assert registry.describe("first") == "The first thing."
    with pytest.raises(OfframpError, match="registered twice"):
        registry.register("first")(First)
    with pytest.raises(OfframpError, match=r"unknown thing 'frist' \(did you mean 'first'"):
        registry.get("frist")


def test_suggestions_stay_short() -> None:
    text = suggest("model", "zzz", [f"name{i}" for i in range(100)])
    assert text.endswith("…)")
    assert "did you mean" not in text


@given(st.binary(max_size=200))
def test_files_are_whole(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("files") / "deep" / "x.bin"
    write_atomic(path, b"old")
    write_atomic(path, data)
    assert path.read_bytes() == data
    assert [p.name for p in path.parent.iterdir()] == ["x.bin"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.txt"
    write_atomic(path, "old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_json_and_tensors_round_trip_and_name_what_is_broken(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1]})
    assert read_json(tmp_path / "a.json") == {"é": [1]}
    tensors = {"x": torch.arange(6).view(2, 3).T, "y": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, {"k": "v"})
    assert tensors_metadata(path) == {"k": "v"}
    again = read_tensors(path)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert tensor_digest(again) == tensor_digest(tensors)
    assert tensor_digest(tensors, extra="x") != tensor_digest(tensors)
    for reader in (read_json, read_tensors):
        with pytest.raises(OfframpError, match="missing: no such file"):
            reader(tmp_path / "missing")
    (tmp_path / "bad").write_bytes(b"\xff\xfe{")
    with pytest.raises(OfframpError, match="bad: not valid JSON"):
        read_json(tmp_path / "bad")
    with pytest.raises(OfframpError, match="bad: not a complete safetensors"):
        read_tensors(tmp_path / "bad")
