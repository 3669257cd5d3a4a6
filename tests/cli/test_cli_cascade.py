"""``offramp cascade``: from trained runs to a run that every other command takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from offramp.files import read_tensors
from offramp.runs import RunFolder
from offramp.training.run_config import load_run_config

Offramp = Callable[..., Any]
MACS = ["--cost", "macs", "--models", 2]


@pytest.fixture
def wide(run: Path, tmp_path: Path, offramp: Offramp) -> Path:
    """A second, wider run on the same samples, trained a little longer."""
    recipe: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["name"] = "wide"
    recipe["model"]["backbone_args"] |= {"embed_dim": 48, "depth": 2}
    recipe["exits"] = [{"after": 1, "head": "linear"}]
    recipe["recipe"]["joint"]["epochs"] = 6
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(recipe))
    answer = offramp("train", tmp_path / "wide.yaml", "--runs", tmp_path / "runs", "--json")
    assert answer.code == 0, answer.err
    return tmp_path / "runs" / "wide"


def promised(found: dict[str, Any], length: int = 2) -> float:
    """A loss at which a cascade of so many models is the cheapest that keeps it."""
    plans = [plan for plan in found["plans"] if len(plan["models"]) == length]
    return min(plan["drop"] for plan in plans if plan["drop"] >= 0) + 1e-6


def test_two_runs_become_one_that_every_command_takes(
    offramp: Offramp, run: Path, wide: Path, tmp_path: Path
) -> None:
    found = offramp("cascade", run, wide, *MACS, "--average", "--json").json
    assert found["unit"] == "MACs"
    assert [entry["name"] for entry in found["pool"]] == ["tiny", "wide"]
    assert found["pool"][0]["cost"] == RunFolder(run).costs.full
    assert "run" not in found
    drop, out = promised(found), tmp_path / "runs" / "both"
    shown = offramp("cascade", run, wide, *MACS, "--max-drop", drop)
    assert shown.code == 0, shown.err
    assert all(word in shown.out for word in ("tiny → wide", "cheapest that loses at most"))

    asked = ["--average", "--max-drop", drop, "--out", out, "--name", "first"]
    said = offramp("cascade", run, wide, *MACS, *asked, "--json").json
    assert said["run"] == str(out)
    assert said["chosen"]["models"] == ["tiny", "wide"]
    assert load_run_config(out / "recipe.yaml").dump()["recipe"] == {
        "name": "assembled",
        "runs": ["tiny", "wide"],
    }
    point = json.loads((out / "points" / "first.json").read_text())
    assert point["exit_names"] == ["model 1", "final"]
    assert f"against {found['best']} alone" in point["notes"][-1]
    best = next(e["accuracy"] for e in found["pool"] if e["name"] == found["best"])
    assert best - point["accuracy"] <= drop + 1e-6
    assert "already holds" in offramp("cascade", run, wide, *MACS, *asked).sentence
    assert "trains nothing" in offramp("train", out / "recipe.yaml", "--runs", tmp_path).sentence

    assert offramp("eval", out, "--json").json["points"]["first"]["n"] == said["samples"]
    bench = offramp("bench", out, "--images", 4, "--rounds", 1, "--batch", "1,4", "--json")
    assert bench.code == 0, bench.err
    assert offramp("report", out).code == 0
    assert "model 1" in (out / "report.html").read_text()


def test_one_run_at_two_sizes(offramp: Offramp, wide: Path, tmp_path: Path) -> None:
    asked = ["cascade", f"{wide}@8,16", *MACS]
    found = offramp(*asked, "--json").json
    assert [entry["name"] for entry in found["pool"]] == ["wide@8", "wide"]
    assert (wide / "sizes" / "8x8" / "records-calibration.safetensors").is_file()
    out = tmp_path / "both"
    made = offramp(*asked, "--max-drop", promised(found), "--out", out, "--exits", "--json").json
    assert made["point"]["exit_names"] == ["model 1 block 1", "model 1", "model 2 block 1", "final"]
    assert RunFolder(out).model.backbone.shared[0].of == 1
    stored = sum(t.numel() for t in read_tensors(out / "model.safetensors").values())
    alone = RunFolder(wide).model
    assert stored < 1.5 * sum(p.numel() for p in alone.parameters())


def test_time_is_measured_where_nobody_says_otherwise(offramp: Offramp, wide: Path) -> None:
    found = offramp("cascade", f"{wide}@8,16", "--max-drop", 100, "--batch-size", 4, "--json").json
    assert found["unit"] == "ms"
    assert all(entry["cost"] > 0 for entry in found["pool"])


def test_cascade_errors_are_one_sentence(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    assert "two models at least" in offramp("cascade", run).sentence
    assert "two models at least" in offramp("cascade", run, run).sentence
    assert "no run" in offramp("cascade", run, tmp_path).sentence
    assert "'big' is no image size" in offramp("cascade", f"{run}@big").sentence
    assert "test split is refused" in offramp("cascade", run, run, "--split", "test").sentence
    assert "--exits needs --out" in offramp("cascade", run, run, "--exits").sentence
    assert "unknown engine" in offramp("cascade", run, run, "--engine", "tpu").sentence
    assert "--max-drop -1" in offramp("cascade", run, run, "--max-drop", -1).sentence
    alone = ["--max-drop", 100, "--out", tmp_path / "out"]
    said = offramp("cascade", f"{run}@8,16", *MACS, *alone).sentence
    assert said.startswith("tiny@8 alone is the cheapest")
    assert not (tmp_path / "out").exists()
