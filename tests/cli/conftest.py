"""A tiny trained run, and the command line as a function."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from offramp.cli.main import app

TINY_RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "image_size": 16,
        "backbone_args": {"patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3},
    },
    "exits": {"layout": "linear", "at": [1, 2, 3]},
    "data": {"name": "digits-grid", "limit": 320},
    "recipe": {"name": "joint", "joint": {"epochs": 2, "batch_size": 64, "lr": 2e-3}},
    "device": "cpu",
}


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one sentence of a command that failed, and nothing else."""
        assert self.code != 0, self.out
        assert "Traceback" not in self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("Error: ")


def call(*arguments: Any) -> Answer:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def offramp() -> Callable[..., Answer]:
    """The command line: ``offramp("eval", run).json``."""
    return call


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_RECIPE))
    return path


@pytest.fixture(scope="session")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, trained, calibrated and evaluated once; not to be written to."""
    runs = tmp_path_factory.mktemp("runs")
    answer = call("train", recipe, "--runs", runs, "--json")
    assert answer.code == 0, answer.err
    run = runs / "tiny"
    answer = call("calibrate", run, "--max-drop", 5, "--name", "first", "--json")
    assert answer.code == 0, answer.err
    assert call("eval", run, "--json").code == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "digits.png"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    return path
