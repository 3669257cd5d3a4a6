"""``offramp calibrate --keep``: a point with fewer tokens, and every command that runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Offramp = Callable[..., Any]
TOKENS = ["--reducer", "evit", "--keep", "1,0.5"]


def test_a_point_with_fewer_tokens_goes_all_the_way(
    offramp: Offramp, run: Path, picture: Path
) -> None:
    answer = offramp("calibrate", run, "--max-cost", 0.5, *TOKENS, "--json").json
    point = answer["point"]
    assert answer["name"] == "confidence-max-cost-0.5-evit"
    assert {str(s["reducer"]) for s in point["front"]} <= {
        "None",
        "{'name': 'evit', 'options': {'keep': 0.5}}",
    }
    one = ["--reducer", "{name: evit, keep: 0.5}", "--name", "half"]
    shown = offramp("calibrate", run, "--max-drop", 100, *one)
    assert "tokens: evit keep = 0.5" in shown.out
    found = offramp("eval", run, "--json").json["points"]["half"]
    assert found["kept"]
    said = offramp("predict", run, picture, "--point", "half", "--json")
    assert said.json["answers"][0]["macs_share"] < 1
    timed = offramp("bench", run, "--point", "half", "--batch", 1, "--rounds", 1, "--json")
    assert timed.json["point"] == "half", timed.err
    assert offramp("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "the model runs with fewer tokens, evit keep = 0.5" in page


def test_a_point_with_fewer_tokens_is_exported(offramp: Offramp, run: Path, picture: Path) -> None:
    pytest.importorskip("onnxruntime")
    half = ["--reducer", "{name: evit, keep: 0.5}", "--engine", "onnxruntime", "--name", "half"]
    offramp("calibrate", run, "--max-drop", 100, *half)
    done = offramp("export", run, "--to", "onnx", "--point", "half", "--json")
    assert done.code == 0, done.err
    assert offramp("predict", done.json["bundle"], picture, "--json").code == 0


def test_auto_is_reached_from_the_command_line(offramp: Offramp, run: Path) -> None:
    asked = ["--max-cost", 0.9, "--reducer", "tome", "--r", "auto", "--batch-size", 2]
    said = offramp("calibrate", run, *asked, "--json").json
    assert said["point"]["notes"][-1].startswith("auto, torch at batch 2: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0.5"], "has no reducer: name one with --reducer (diffrate,"),
        (["--reducer", "tome", "--keep", "0.5"], "'tome' has no option 'keep'"),
        (["--reducer", "tome", "--r", "1.5"], "--r '1.5': use numbers with commas"),
        (["--reducer", "evit", "--keep", "half"], "--keep 'half': use numbers with commas"),
        (["--reducer", "evit", "--keep", "1", "--r", "1"], "different reducers: give one"),
        (["--reducer", "evitt", "--keep", "1"], "did you mean 'evit'"),
        (["--reducer", "evit", "--keep", "2"], "keep = 2"),
        (["--reducer", "tome", "--keep", "auto"], "reducer tome goes by r"),
        (["--reducer", "diffrate", "--keep", "auto"], "has no single strength"),
        (["--reducer", "[1", "--keep", "1"], "--reducer '[1': give a name"),
        (["--reducer", "dynamicvit", "--keep", "0.5"], "has weights of its own"),
    ],
)
def test_strengths_that_make_no_sense(
    offramp: Offramp, run: Path, arguments: list[str], said: str
) -> None:
    assert said in offramp("calibrate", run, "--max-drop", 1, *arguments).sentence


def test_a_risk_is_not_proved_for_the_luckiest_of_several(offramp: Offramp, run: Path) -> None:
    assert "proved for one model" in offramp("calibrate", run, "--risk", 0.5, *TOKENS).sentence
