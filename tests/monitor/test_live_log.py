"""Logs of live answers: what is written is read, and what cannot be read is named by its line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.errors import OfframpError
from offramp.monitor import append_live, read_live
from offramp.runtime.prediction import ExitTables, Prediction

NAMES = ["block 1", "block 2", "final"]
TABLES = ExitTables(torch.tensor([1, 2, 3]), None, None)


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    first = Prediction(logits, torch.tensor([0, 2]), TABLES)
    append_live(path, first)
    append_live(path, Prediction(logits, torch.tensor([1, 2]), TABLES, torch.tensor([True, False])))
    sight, count = read_live(path, NAMES)
    assert count == 4
    assert sight.exits.tolist() == [0, 2, 1, 2]
    assert sight.cut.tolist() == [False, False, True, False]
    wanted = first.probs.amax(-1).repeat(2)
    np.testing.assert_allclose(sight.readings, wanted, atol=1e-6)
    later, count = read_live(path, NAMES, start=3)
    assert (later.exits.tolist(), count) == ([2], 4)
    assert len(read_live(path, NAMES, start=4)[0]) == 0


def test_a_regression_model_writes_values(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    tables = ExitTables(torch.tensor([1, 2, 3]), None, None, task="regression")
    append_live(path, Prediction(torch.tensor([[-37.5]]), torch.tensor([2]), tables))
    assert read_live(path, NAMES)[0].readings.tolist() == [-37.5]


def test_tables_with_names_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "live.csv"
    path.write_text('time,confidence,exit,cut\n1,0.5,block 2,\n2,0.75,2,true\n3,1,"0",0\n')
    sight, count = read_live(path, NAMES)
    assert count == 3
    assert sight.exits.tolist() == [1, 2, 0]
    assert sight.readings.tolist() == [0.5, 0.75, 1]
    assert sight.cut.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("name", "whole", "torn"),
    [
        ("live.jsonl", '{"exit": 1, "confidence": 0.5}\n', '{"exit": 1, "conf'),
        ("live.csv", "exit,confidence\n1,0.5\n", "2,"),
    ],
)
def test_a_line_still_being_written_is_left_for_later(
    tmp_path: Path, name: str, whole: str, torn: str
) -> None:
    path = tmp_path / name
    path.write_text(whole + torn)
    assert read_live(path, NAMES)[1] == 1
    path.write_text(whole + torn + "\n")  # finished, and wrong
    with pytest.raises(OfframpError, match=rf"{name}, line {whole.count(chr(10)) + 1}: "):
        read_live(path, NAMES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense\n", "line 1"),
        ("[1, 2]\n", "line 1: not an object"),
        ('{"exit": 0}\n', "line 1: no 'confidence'"),
        ('{"confidence": 1}\n', "line 1: no 'exit'"),
        ('{"exit": 3, "confidence": 1}\n', r"exit 3 does not exist \(use 0…2"),
        ('{"exit": "block 9", "confidence": 1}\n', "line 1"),
        ('{"exit": 0.5, "confidence": 1}\n', "exit 0.5 does not exist"),
        ('{"exit": true, "confidence": 1}\n', "exit True does not exist"),
        ('{"exit": 1, "confidence": NaN}\n', "confidence nan is no finite number"),
        ('\n{"exit": 1, "confidence": "sure"}\n', "line 2"),
        ('{"exit": 1, "confidence": 1, "cut": "maybe"}\n', "cut 'maybe' is neither"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text(text)
    with pytest.raises(OfframpError, match=said):
        read_live(path, NAMES)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match="no such file"):
        read_live(tmp_path / "absent.jsonl", NAMES)
    (tmp_path / "live.txt").write_text("0 0.5\n")
    with pytest.raises(OfframpError, match=r"live\.txt: neither a folder of images nor a log"):
        read_live(tmp_path / "live.txt", NAMES)
    (tmp_path / "live.csv").write_text("exit,sure\n0,0.5\n")
    with pytest.raises(OfframpError, match="names no column 'confidence'"):
        read_live(tmp_path / "live.csv", NAMES)
    (tmp_path / "live.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OfframpError, match="not a text file"):
        read_live(tmp_path / "live.jsonl", NAMES)
    (tmp_path / "live.jsonl").write_text('{"exit": 1, "confidence": 0.5}\n')
    with pytest.raises(OfframpError, match="1 samples, but 5 were read from it before"):
        read_live(tmp_path / "live.jsonl", NAMES, start=5)
