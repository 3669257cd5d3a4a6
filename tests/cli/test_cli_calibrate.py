"""Targets on the command line: what is saved, what is said, and what is refused in one sentence."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.report import facts
from offramp.report.findings import Findings
from offramp.runs import RunFolder

Offramp = Callable[..., Any]


def test_a_risk_is_proved_saved_and_judged(offramp: Offramp, run: Path) -> None:
    answer = offramp("calibrate", run, "--risk", 0.6, "--delta", 0.2)
    assert answer.code == 0, answer.err
    saved = run / "points" / "confidence-risk-0.6-delta-0.2.json"
    assert saved.is_file()
    said = " ".join(answer.out.split())
    assert "with probability at least 80 % over the calibration draw" in said
    assert "for the thresholds" in said
    assert "for the proof" in said
    result = offramp("eval", run, "--json").json["points"][saved.stem]
    assert result["promise"]["kind"] == "risk"
    assert result["kept"] == (result["taken"] <= 0.6)
    assert "got another label" in result["verdict"]


@pytest.mark.parametrize("method", ["ucb", "crc", "naive"])
def test_other_methods(offramp: Offramp, run: Path, method: str) -> None:
    options = ["--risk", 0.7, "--method", method, "--path", "shared", "--risk-kind", "gap"]
    answer = offramp("calibrate", run, *options, "--json")
    assert answer.json["name"] == f"confidence-risk-0.7-gap-{method}-shared"
    promise = answer.json["point"]["promise"]
    assert (promise["method"], promise["unit"]) == (method, "gap")
    assert promise["samples"] == answer.json["point"]["samples"]["proof"]


def test_a_latency_is_measured_and_promised(offramp: Offramp, run: Path) -> None:
    answer = offramp("calibrate", run, "--max-latency-ms", 1000, "--quantile", "p50", "--json")
    point = answer.json["point"]
    assert answer.json["name"] == "confidence-max-latency-ms-1000-p50"
    assert point["costs"]["unit"] == "ms"
    assert point["costs"]["meta"]["batch_size"] == 1
    assert offramp("eval", run, "--json").json["points"][answer.json["name"]]["kept"]
    timed = ["bench", run, "--images", 4, "--rounds", 1]
    said = " ".join(offramp(*timed, "--batch", "1,2").out.split())
    assert "promise kept: half of the samples take at most 1000 ms at batch size 1, by the" in said
    assert "4 images one by one in 1 rounds" in said
    assert offramp(*timed, "--batch", "2", "--json").json["results"][0]["verdict"]["kept"] is None


def test_dynamic_search(offramp: Offramp, run: Path) -> None:
    answer = offramp("calibrate", run, "--max-cost", 0.9, "--search", "dynamic", "--json")
    assert answer.json["point"]["cost_share"] <= 0.9


@pytest.mark.parametrize(
    "asked",
    [
        "--max-drop 3 --certainty 0.8 --policy entropy --temperatures --search dynamic",
        "--max-drop 2.123456789 --split validation --no-smooth",
        "--max-cost 0.9 --engine onnxruntime --precision int8",
        "--max-cost 0.9 --policy boosted --policy-option keep=0.25",
        "--risk 0.7 --delta 0.2 --risk-kind brier_gap --method ucb --path shared --temperatures",
        '--max-drop 60 --reducer \'{"name": "tome"}\' --r 0,2',
        '--max-drop 60 --reducer \'{"name": "tome", "r": 2}\'',
    ],
)
def test_the_printed_command_makes_the_point_again(
    offramp: Offramp, run: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    wanted = ["calibrate", run.name, *shlex.split(asked), "--name", "asked"]
    first = offramp(*wanted, "--json").json["point"]
    lines = facts.commands(Findings(RunFolder(run)))
    (printed,) = (line for line in lines if line.endswith("--name asked"))
    assert sorted(shlex.split(printed)[1:]) == sorted(wanted)
    (run / "points/asked.json").unlink()
    assert offramp(*shlex.split(printed)[1:], "--json").json["point"] == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--risk", "0.01", "--max-drop", "1"], "--max-drop and --risk given"),
        (["--max-drop", "1", "--delta", "0.1"], "--delta goes with --risk, not with --max-drop"),
        (["--risk", "0.1", "--quantile", "p95"], "--quantile goes with --max-latency-ms"),
        (["--max-cost", "0.5", "--risk-kind", "gap"], "--risk-kind goes with --risk"),
        (["--max-latency-ms", "5", "--quantile", "p90"], "--quantile 'p90', but it must be p50 or"),
        (["--max-latency-ms", "5", "--batch-size", "8"], "--max-latency-ms is about single"),
        (["--max-latency-ms", "0"], "max_latency_ms = 0"),
        (["--risk", "0.1", "--method", "lttt"], "did you mean 'ltt'"),
        (["--risk", "0.1", "--risk-kind", "deviation"], "needs a tolerance"),
        (["--risk", "0.1", "--method", "naive", "--delta", "0.1"], "takes no delta"),
        (["--risk", "2"], "must be between 0 and 1"),
        (["--risk", "0.0001"], "cannot be proved on"),
        (["--max-drop", "1", "--search", "dynamc"], "did you mean 'dynamic'"),
        (["--max-drop", "1", "--policy-option", "keep"], "write name=value, e.g. keep=0.3"),
        (["--max-drop", "1", "--policy-option", "keep=1"], "'confidence' has no option 'keep'"),
    ],
)
def test_what_does_not_go_together(
    offramp: Offramp, run: Path, arguments: list[str], said: str
) -> None:
    before = sorted(path.name for path in (run / "points").iterdir())
    assert said in offramp("calibrate", run, *arguments).sentence
    assert sorted(path.name for path in (run / "points").iterdir()) == before
