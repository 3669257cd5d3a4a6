"""``offramp eval --uncertainty``: tables, a file, a plot, and the report's section."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import OfframpError
from offramp.report import write_report
from offramp.runs import RunFolder
from offramp.uncertainty.evaluation import read_uncertainty

Offramp = Callable[..., Any]


def test_it_writes_what_it_shows_and_the_report_has_it(offramp: Offramp, run: Path) -> None:
    answer = offramp("eval", run, "--uncertainty", "--outside", "digits")
    assert answer.code == 0, answer.err
    words = (
        "block 1",
        "point first",
        "adaptive",
        "Prediction sets of first",
        "Told from digits",
    )
    assert all(word in answer.out for word in words)
    found = json.loads((run / "uncertainty.json").read_text())
    assert [subject["scores"]["samples"] for subject in found["exits"]] == [found["samples"]] * 4
    evaluation = offramp("eval", run, "--json").json
    assert found["exits"][2]["scores"]["accuracy"] == pytest.approx(
        evaluation["exits"][2]["accuracy"]
    )
    point = found["points"]["first"]
    assert point["scores"]["accuracy"] == pytest.approx(evaluation["points"]["first"]["accuracy"])
    assert {(s["alpha"], s["method"], s["by"]) for s in point["sets"]} == {
        (alpha, method, by)
        for alpha in (0.1, 0.05)
        for method in ("lac", "aps", "raps")
        for by in ("mixture", "exit")
    }
    assert set(point["outside"]) == {"confidence", "entropy", "energy"}
    assert (run / "plots" / "uncertainty.png").read_bytes().startswith(b"\x89PNG")
    page = write_report(RunFolder(run)).read_text()
    assert "How far to trust the answers" in page
    assert "Told from digits" in page


def test_json_and_other_weights(offramp: Offramp, run: Path) -> None:
    refused = offramp("eval", run, "--uncertainty", "--sets-from", "calibration", "--json")
    assert "chosen on these very records" in refused.sentence
    found = offramp("eval", run, "--uncertainty", "--json").json
    assert found == json.loads((run / "uncertainty.json").read_text())
    assert found["points"]["first"]["outside"] == {}
    assert read_uncertainty(run / "uncertainty.json", "0" * 16) is None
    (run / "uncertainty.json").write_text("{}")
    with pytest.raises(OfframpError, match="no result of offramp eval --uncertainty"):
        read_uncertainty(run / "uncertainty.json", "0" * 16)


def test_what_does_not_go_together(offramp: Offramp, run: Path) -> None:
    assert "two questions" in offramp("eval", run, "--anytime", "--uncertainty").sentence
    assert "need --uncertainty" in offramp("eval", run, "--outside", "digits").sentence
    same = offramp("eval", run, "--uncertainty", "--sets-from", "test").sentence
    assert "use another split for them" in same
    outside = offramp("eval", run, "--uncertainty", "--outside", "digits-grid").sentence
    assert "must be of another image data set" in outside


def test_rows_keep_their_names_on_a_narrow_terminal(offramp: Offramp, run: Path) -> None:
    scores = offramp("eval", run, "--uncertainty").out.split("Who leaves point")[0]
    assert all(f"\n  block {k} " in scores for k in (1, 2, 3))
