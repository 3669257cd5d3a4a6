"""``offramp eval --anytime``: tables, a file, a plot, and the report's section."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import OfframpError
from offramp.report import write_report
from offramp.report.anytime import read_anytime
from offramp.runs import RunFolder

Offramp = Callable[..., Any]


def test_anytime_writes_what_it_shows(offramp: Offramp, run: Path) -> None:
    answer = offramp("eval", run, "--anytime")
    assert answer.code == 0, answer.err
    said = ("block 1", "final", "beaten by", "bursty", "uniform", "without looking", "anytime.json")
    assert all(word in answer.out for word in said)
    result = offramp("eval", run, "--anytime", "--json").json
    assert result == json.loads((run / "anytime.json").read_text())
    assert (run / "plots" / "anytime.png").read_bytes().startswith(b"\x89PNG")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert result["exits"] == [entry["accuracy"] for entry in evaluation["exits"]]
    assert result["unit"] == "MACs"


def test_anytime_on_measured_time_and_in_the_report(offramp: Offramp, run: Path) -> None:
    options = ["--anytime", "--cost", "time", "--batch-size", 2]
    result = offramp("eval", run, *options, "--json").json
    assert result["unit"] == "ms"
    assert result["meta"]["batch_size"] == 2
    assert result["curves"]["multi"]["costs"] == sorted(result["curves"]["multi"]["costs"])
    page = write_report(RunFolder(run)).read_text()
    assert "Accuracy against budget" in page
    assert "ms per image (torch, float32, batch 2)" in page
    assert (run / "plots" / "anytime.png").is_file()


def test_budgets_of_other_weights_are_left_out(offramp: Offramp, run: Path) -> None:
    offramp("eval", run, "--anytime", "--json")
    assert read_anytime(run / "anytime.json", "0" * 16) is None
    assert read_anytime(run / "nothing.json", "0" * 16) is None
    (run / "anytime.json").write_text("{}")
    with pytest.raises(OfframpError, match=r"anytime\.json: no result of offramp eval --anytime"):
        read_anytime(run / "anytime.json", "0" * 16)


def test_options_of_anytime_alone(offramp: Offramp, run: Path) -> None:
    assert "need --anytime" in offramp("eval", run, "--cost", "time").sentence
    assert "unknown split 'tset'" in offramp("eval", run, "--anytime", "--split", "tset").sentence
    assert "troch" in offramp("eval", run, "--anytime", "--engine", "troch").sentence
    assert not (run / "anytime.json").exists()
