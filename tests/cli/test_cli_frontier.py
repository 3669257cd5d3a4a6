"""``offramp frontier`` on small models and a tiny run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Offramp = Callable[..., Any]
FEW = ["--images", 4, "--rounds", 2]


def test_frontier_times_static_models(offramp: Offramp, tmp_path: Path) -> None:
    out = tmp_path / "here" / "times.json"
    answer = offramp("frontier", "cct_2_3x2_32", "cct_4_3x2_32", *FEW, "--out", out)
    assert answer.code == 0, answer.err
    assert all(word in answer.out for word in ("cct_2_3x2_32", "batch 1", "ms per image", str(out)))
    assert "already" not in answer.out
    written = json.loads(out.read_text())
    assert [entry["name"] for entry in written["entries"]] == ["cct_2_3x2_32", "cct_4_3x2_32"]
    assert written["verdicts"] == []
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_frontier_names_where_accuracies_are_from(offramp: Offramp) -> None:
    answer = offramp("frontier", "levit_128s", "--images", 1, "--rounds", 1)
    assert all(word in answer.out for word in ("76.52 %", "on ImageNet-1k", "timm's published"))


def test_frontier_places_a_run_among_them(offramp: Offramp, run: Path) -> None:
    options = ["cct_2_3x2_32", "--run", run, "--batch", 2, *FEW]
    result = offramp("frontier", *options, "--json").json
    assert result == json.loads((run / "frontier.json").read_text())
    assert (run / "plots" / "frontier.png").is_file()
    small, backbone, dynamic = result["entries"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert small["accuracy"] is None
    assert backbone["name"] == "tiny (last exit)"
    assert backbone["accuracy"] == evaluation["exits"][-1]["accuracy"]
    assert dynamic["name"] == "tiny at first"
    assert dynamic["accuracy"] == evaluation["points"]["first"]["accuracy"]
    assert dynamic["task"] == backbone["task"] == "digits-grid, test split"
    assert dynamic["macs"] < backbone["macs"]
    assert (dynamic["engine"], dynamic["precision"]) == ("torch", "float32")
    (verdict,) = result["verdicts"]
    assert verdict["compared"] == 1
    shown = offramp("frontier", *options, "--point", "first")
    assert shown.code == 0
    assert "tiny at first on torch:" in " ".join(shown.out.split())


def test_another_run_is_a_static_model(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    for models in ([other], [other, run]):
        result = offramp("frontier", *models, "--run", run, *FEW, "--json").json
        names = [entry["name"] for entry in result["entries"]]
        assert names == ["other (last exit)", "tiny (last exit)", "tiny at first"]
        assert result["verdicts"][0]["compared"] == 2


def test_frontier_errors_are_one_sentence(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    said = offramp("frontier", "cct_2_3x2_32", "--point", "first").sentence
    assert said == "--point needs --run"
    assert "ends in .json" in offramp("frontier", "--out", tmp_path / "a.png").sentence
    assert "unknown model 'cct_nine'" in offramp("frontier", "cct_nine").sentence
    assert "unknown engine" in offramp("frontier", "cct_2_3x2_32", "--engine", "tpu").sentence
    assert "no run" in offramp("frontier", "--run", tmp_path).sentence
    missing = offramp("frontier", "cct_2_3x2_32", "--run", run, "--point", "nothing").sentence
    assert "has no point 'nothing'" in missing
