"""Every command on a tiny run: what it prints, what it writes, and one JSON document."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Offramp = Callable[..., Any]


def test_train_shows_every_exit_and_what_comes_next(
    offramp: Offramp, recipe: Path, tmp_path: Path
) -> None:
    answer = offramp(
        "train", recipe, "name=other", "recipe.joint.epochs=1", "--runs", tmp_path / "runs"
    )
    run = tmp_path / "runs" / "other"
    assert answer.code == 0
    assert all(name in answer.out for name in ("block 1", "block 3", "final", f"eval {run}"))
    assert (run / "model.safetensors").is_file()
    assert "epochs: 1" in (run / "recipe.yaml").read_text()


def test_train_in_pieces_says_it_is_unfinished(
    offramp: Offramp, recipe: Path, tmp_path: Path
) -> None:
    arguments = ["train", recipe, "--runs", tmp_path, "--json"]
    first = offramp(*arguments, "--minutes", 0)
    assert (first.code, first.json["finished"]) == (3, False)
    refused = offramp(*arguments)
    assert refused.code == 1
    assert "--resume" in refused.json["error"]
    rest = offramp(*arguments, "--resume")
    assert (rest.code, rest.json["finished"]) == (0, True)
    assert rest.json["last"]["epoch"] == 2


def test_eval_lists_exits_and_points_with_the_verdict(offramp: Offramp, run: Path) -> None:
    answer = offramp("eval", run)
    assert answer.code == 0
    assert all(word in answer.out for word in ("block 1", "final", "first", "promise", "interval"))
    result = offramp("eval", run, "--json").json
    assert result == json.loads((run / "evaluation.json").read_text())
    assert [exit["name"] for exit in result["exits"]] == ["block 1", "block 2", "block 3", "final"]
    assert result["points"]["first"]["n"] == result["samples"] == 320


@pytest.mark.parametrize("policy", ["confidence", "entropy", "margin", "patience"])
def test_calibrate_shows_and_saves_the_point(offramp: Offramp, run: Path, policy: str) -> None:
    answer = offramp("calibrate", run, "--max-cost", 0.9, "--policy", policy)
    saved = run / "points" / f"{policy}-max-cost-0.9.json"
    assert answer.code == 0, answer.err
    assert saved.is_file()
    assert all(word in answer.out for word in ("block 1", "always", "speed-up", str(saved)))


def test_calibrate_on_measured_time(offramp: Offramp, run: Path) -> None:
    answer = offramp(
        "calibrate", run, "--max-cost", 1.5, "--cost", "time", "--batch-size", 4, "--json"
    )
    point = answer.json["point"]
    assert point["costs"]["unit"] == "ms"
    assert point["costs"]["meta"]["batch_size"] == 4
    assert point["speedup_time"] is not None
    assert point["front"]


def test_bench_writes_what_it_shows(offramp: Offramp, run: Path) -> None:
    options = ["--batch", "1,8", "--images", 16, "--rounds", 1]
    result = offramp("bench", run, *options, "--json").json
    assert result == json.loads((run / "benchmark.json").read_text())
    assert result["point"] == "first"
    assert [found["batch_size"] for found in result["results"][0]["batches"]] == [1, 8]
    shown = offramp("bench", run, *options, "--point", "first")
    assert shown.code == 0
    assert all(word in shown.out for word in ("full", "layers", "MACs", "time", "reached"))
    assert json.loads(shown.out.splitlines()[-1])[0]["batch_size"] == 1


def test_predict_answers_every_image(offramp: Offramp, run: Path, picture: Path) -> None:
    answers = offramp("predict", run, picture, picture, "--json").json["answers"]
    assert [answer["image"] for answer in answers] == [str(picture)] * 2
    for answer in answers:
        assert answer["label"] in "0123456789"
        assert 0 < answer["probability"] <= 1
        assert answer["exit"] in ("block 1", "block 2", "block 3", "final")
        assert 1 <= answer["blocks"] <= 4
    shown = offramp("predict", run, picture)
    assert shown.code == 0
    assert "of 4" in shown.out


def test_predict_keeps_a_deadline(offramp: Offramp, run: Path, picture: Path) -> None:
    hurried, relaxed = (
        offramp("predict", run, picture, "--deadline-ms", limit, "--json").json["answers"][0]
        for limit in ("0", "1e6")
    )
    unlimited = offramp("predict", run, picture, "--json").json["answers"][0]
    assert hurried["exit"] == "block 1"
    assert "cut" not in unlimited
    assert (relaxed["exit"], relaxed["cut"]) == (unlimited["exit"], False)
    refused = offramp("predict", run, picture, "--deadline-ms", "-1")
    assert refused.code != 0
    assert "must be a number of milliseconds" in refused.err


def test_report_writes_one_file(offramp: Offramp, run: Path) -> None:
    answer = offramp("report", run, "--json")
    assert answer.json == {"report": str(run / "report.html")}
    assert (run / "report.html").is_file()
    assert offramp("report", run).out.strip() == f"report: {run / 'report.html'}"
