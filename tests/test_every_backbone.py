"""The benchmark of all backbones: its recipes, its bookkeeping on one tiny model, its table."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from offramp.cli.main import app
from offramp.training.run_config import load_run_config

HOME = Path(__file__).parents[1]
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "backbone": "vit_tiny_patch16_224",
        "image_size": 16,
        "backbone_args": {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3},
    },
    "exits": {"layout": "linear", "at": [1, 2]},
    "data": {"name": "digits-grid"},
    "recipe": {"name": "joint", "joint": {"epochs": 9}},
    "device": "cpu",
}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HOME / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


every = script("every_backbone")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The script on one tiny recipe; its commands run in this process and are written down."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr(every, "RECIPES", tmp_path)
    monkeypatch.setattr(every, "MODELS", {"Tiny": "tiny"})
    done: list[tuple[str, ...]] = []

    def here(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        assert command[1:3] == ["-m", "offramp.cli.main"]
        assert env == os.environ | {"OMP_NUM_THREADS": "1"}
        done.append(tuple(command[3:]))
        result = CliRunner().invoke(app, command[3:])
        return SimpleNamespace(returncode=result.exit_code, stdout=result.stdout)

    monkeypatch.setattr(every.subprocess, "run", here)
    monkeypatch.setattr(every, "commit", lambda: "abc")
    return done


def arguments(tmp_path: Path, *more: str) -> Any:
    words = ["--quick", "--threads", "1", "--images", "4", "--rounds", "1", "--batch", "1,4"]
    words += ["--runs", str(tmp_path / "runs"), "--results-file", str(tmp_path / "out.json")]
    return every.options().parse_args([*words, *more])


def test_the_whole_road_once(tmp_path: Path, commands: list[tuple[str, ...]]) -> None:
    threads = torch.get_num_threads()
    try:
        assert every.main(arguments(tmp_path)) == []
        assert [words[0] for words in commands] == ["train", "calibrate", "eval", "bench"]
        found = json.loads((tmp_path / "out.json").read_text())["models"]["Tiny"]
        assert found["family"] == "vit"
        assert found["samples"] == every.QUICK_IMAGES
        assert found["depth"] == 3
        assert [head["after"] for head in found["heads"]] == [1, 2]
        assert [e["name"] for e in found["exits"]][-1] == "final"
        assert found["exits"][-1]["accuracy"] == found["full_accuracy"]
        assert found["point"]["drop"] == pytest.approx(
            found["full_accuracy"] - found["point"]["accuracy"]
        )
        assert list(found["batches"]) == ["1", "4"]
        assert 10 < found["commonest"] < 50
        assert found["parameters"] + found["exit_parameters"] > 3 * 12 * 24**2

        commands.clear()  # there already
        assert every.main(arguments(tmp_path)) == []
        assert commands == []

        assert every.main(arguments(tmp_path, "--max-drop", "3")) == []  # trained already
        changed = json.loads((tmp_path / "out.json").read_text())["models"]["Tiny"]
        assert changed["training_seconds"] == found["training_seconds"]
        assert changed["settings"]["max_drop"] == 3

        commands.clear()
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"seed": 7}))
        assert every.main(arguments(tmp_path)) == []  # another recipe, another folder
        assert len(commands) == 4
        again = json.loads((tmp_path / "out.json").read_text())["models"]["Tiny"]
        assert again["digest"] != found["digest"]
    finally:
        torch.set_num_threads(threads)


def test_a_failure_is_named_and_leaves_what_is_there(
    tmp_path: Path, commands: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"exits": {"at": [1, 9]}}))
    (tmp_path / "out.json").write_text('{"models": {}}')
    assert every.main(arguments(tmp_path)) == ["Tiny"]
    assert "Tiny: offramp train" in capsys.readouterr().err
    assert (tmp_path / "out.json").read_text() == '{"models": {}}'


def test_every_short_recipe_is_on_the_road() -> None:
    recipes = (HOME / "recipes").glob("*_digits_grid_*.yaml")
    files = {path.stem for path in recipes if "every_backbone.py" in path.read_text()}
    assert set(every.MODELS.values()) == files
    for stem in files:
        config = load_run_config(HOME / "recipes" / f"{stem}.yaml", [])
        assert config.name == stem.replace("_", "-")
        overrides = every.quick(HOME / "recipes" / f"{stem}.yaml")
        tried = load_run_config(HOME / "recipes" / f"{stem}.yaml", overrides).dump()
        stages = [stage for stage in tried["recipe"].values() if isinstance(stage, dict)]
        epochs = [stage["epochs"] for stage in stages if "epochs" in stage]
        assert max(epochs) == 1


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    settings = {"max_drop": 1.0, "threads": 2, "bench": {"batch": "1,32"}}
    model = {
        "settings": settings,
        "environment": {"hardware": {"cpu": "CPU"}},
        "dataset": "digits-grid",
        "samples": 2000,
        "commonest": 22.6,
        "family": "swin",
        "image_size": [32, 32],
        "parameters": 27_500_000,
        "macs": 89_000_000,
        "depth": 12,
        "heads": [{"head": "lph", "after": 4}, {"head": "gah", "after": 6}],
        "training_seconds": 71.2,
        "full_accuracy": 80.0,
        "point": {
            "accuracy": 79.25,
            "drop": 0.75,
            "drop_interval": [0.25, 1.25],
            "layers": 1.5,
            "macs": 1.4,
        },
        "batches": {"1": {"speedup_time": 1.1}, "32": {"speedup_time": 1.3}},
    }
    page = tmp_path / "page.md"
    readme = script("readme")
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    readme.fill(page, readme.backbones({"models": {"Swin-T": model}}))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    row = next(line for line in text.splitlines() if line.startswith("| Swin-T"))
    assert row == (
        "| Swin-T | swin | 32 | 27.5 M | 89 M | 4, 6 of 12 (lph/gah) | 71 s | 80.00 | 79.25 | "
        "0.75 (0.25 … 1.25) | 1.50× | 1.40× | 1.10× | 1.30× |"
    )
    header, rule = (line for line in text.splitlines() if line.startswith(("| model", "|---")))
    assert header.count("|") == rule.count("|") == row.count("|")
