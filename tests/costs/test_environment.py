"""What a committed result says about the machine, and what it must not say."""

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from offramp.costs import environment


def test_hardware_is_jsonable_and_names_nobody() -> None:
    told = json.dumps(environment.describe_environment())
    assert json.loads(told)["hardware"]["cores"] >= 1
    for private in (platform.node(), str(Path.home()), os.getcwd()):
        assert len(private) < 3 or private not in told


def test_versions_name_the_libraries_that_matter() -> None:
    found = environment.describe_versions()
    assert {"python", "torch", "timm"} <= set(found)


def test_missing_libraries_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LIBRARIES", ("torch", "no-such-library"))
    assert set(environment.describe_versions()) == {"python", "torch"}


@pytest.mark.parametrize("key", ["model name", "Model"])
def test_cpu_model_from_cpuinfo(tmp_path: Path, key: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{key}\t: Example CPU 3000\nflags : a b\n")
    assert environment.cpu_model(cpuinfo) == "Example CPU 3000"


def test_cpu_model_on_a_mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = subprocess.CompletedProcess([], 0, stdout="Apple M9\n")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    assert environment.cpu_model(tmp_path / "none") == "Apple M9"


def test_cpu_model_where_nothing_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert environment.cpu_model(tmp_path / "none") == platform.machine()


def test_systems_that_tell_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert environment.memory_gib() is None
    assert environment.usable_cores() >= 1
