"""``offramp monitor``: a log or a folder of images against the records of a point."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.cli.monitor import DRIFT
from offramp.monitor import Reference, Watch
from offramp.monitor.log import append_lines
from offramp.monitor.reference import Sight
from offramp.runs import RunFolder
from offramp.runtime import compile_runner

Offramp = Callable[..., Any]
WINDOW = ["--window", 64]


@pytest.fixture
def sight(run: Path) -> Sight:
    """What the point shows of the calibration records themselves."""
    folder = RunFolder(run)
    return Reference(folder.point("first")[1], folder.records("calibration")).sight


@pytest.fixture
def live(sight: Sight, tmp_path: Path) -> Path:
    path = tmp_path / "live.jsonl"
    append_lines(path, sight)
    return path


def test_data_like_the_records_is_fine(offramp: Offramp, run: Path, live: Path) -> None:
    answer = offramp("monitor", run, "first", live, *WINDOW)
    assert answer.code == 0, answer.err
    assert all(word in answer.out for word in ("live", "expected", "no sign of drift", "cost"))
    verdict = offramp("monitor", run, "first", live, *WINDOW, "--json").json
    assert not verdict["drift"]
    assert verdict["samples"] == len(live.read_text().splitlines())
    assert sum(verdict["exit_share"]) == pytest.approx(1)


def test_drift_ends_with_a_code_of_its_own(
    offramp: Offramp, run: Path, sight: Sight, tmp_path: Path
) -> None:
    path = tmp_path / "other.jsonl"
    last = np.full_like(sight.exits, 3)
    append_lines(path, Sight(last, 0.3 * sight.readings, sight.cut))
    answer = offramp("monitor", run, "first", path, *WINDOW)
    assert answer.code == DRIFT == 4
    assert "DRIFT found at sample 64" in " ".join(answer.out.split())
    assert offramp("monitor", run, "first", path, *WINDOW, "--json").json["drift"]


def test_noise_on_real_images_is_found(run: Path) -> None:
    folder = RunFolder(run)
    point = folder.point("first")[1]
    images = folder.images("test", 320)
    noisy = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    runner = compile_runner(folder.model, point)
    verdicts = []
    for batch in (images, noisy):
        watch = Watch(point, folder.records("calibration"), window=64)
        verdicts.append(watch.update(runner(batch)))
    assert [verdict.drift for verdict in verdicts] == [False, True]


def test_with_a_state_only_new_lines_are_read(
    offramp: Offramp, run: Path, live: Path, sight: Sight, tmp_path: Path
) -> None:
    options = ["monitor", run, "first", live, *WINDOW, "--state", tmp_path / "state.json", "--json"]
    count = len(sight)
    assert offramp(*options).json["samples"] == count
    assert offramp(*options).json["samples"] == count
    append_lines(live, sight.last(10))
    assert offramp(*options).json["samples"] == count + 10
    live.write_text("")
    assert "0 samples, but" in offramp(*options).json["error"]


def test_too_few_samples_say_so(offramp: Offramp, run: Path, sight: Sight, tmp_path: Path) -> None:
    append_lines(tmp_path / "few.jsonl", sight.last(5))
    answer = offramp("monitor", run, "first", tmp_path / "few.jsonl")
    assert answer.code == 0
    assert "5 of 256 samples" in answer.out


def test_what_predict_logs_is_what_monitor_reads(
    offramp: Offramp, run: Path, picture: Path, tmp_path: Path
) -> None:
    log = tmp_path / "live.jsonl"
    for _ in range(2):
        answers = offramp("predict", run, picture, picture, "--log", log, "--json").json["answers"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0]["exit"] == answers[0]["exit_index"]
    assert lines[0]["confidence"] == pytest.approx(answers[0]["probability"], abs=1e-6)
    verdict = offramp("monitor", run, "first", log, "--json").json
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        shutil.copy(picture, folder / f"{i}.png")
    found = offramp("monitor", run, "first", folder, "--json").json
    assert found["exit_share"] == verdict["exit_share"]
    assert found["confidence"] == pytest.approx(verdict["confidence"], abs=1e-3)


def test_one_sentence_for_bad_input(
    offramp: Offramp, run: Path, live: Path, tmp_path: Path
) -> None:
    said = offramp("monitor", run, "second", live).sentence
    assert "no point 'second'" in said
    assert "no such file or folder" in offramp("monitor", run, "first", tmp_path / "no").sentence
    assert "window = 3" in offramp("monitor", run, "first", live, "--window", 3).sentence
    assert "unknown split" in offramp("monitor", run, "first", live, "--split", "tset").sentence
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in offramp("monitor", run, "first", empty).sentence
    state = ["--state", tmp_path / "state.json"]
    assert "goes with a log" in offramp("monitor", run, "first", empty, *state).sentence
    (empty / "a.png").write_bytes(b"no image")
    assert "a.png" in offramp("monitor", run, "first", empty).sentence
    live.write_text('{"exit": 0, "confidence": 2}\n')
    assert "live.jsonl" in offramp("monitor", run, "first", live, *state).sentence
    assert not (tmp_path / "state.json").exists()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(empty / "a.png")
    assert offramp("monitor", run, "first", empty).code == 0
