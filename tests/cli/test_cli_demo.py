"""``offramp demo`` on a tiny model: the whole road, and what it refuses to replace."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.cli.demo_summary import sentences

Offramp = Callable[..., Any]
TINY = [
    "model.backbone_args={patch_size: 4, embed_dim: 24, depth: 4, num_heads: 3}",
    "exits={layout: lgvit, at: [1, 2, 3]}",
    "data.limit=256",
    "recipe.finetune.epochs=1",
    "recipe.end_to_end.epochs=1",
    "recipe.self_distillation.epochs=1",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def found(offramp: Offramp, runs: Path) -> dict[str, Any]:
    answer = offramp("demo", *TINY, "--runs", runs, "--images", 64, "--json")
    assert answer.code == 0, answer.err
    return dict(answer.json)


def test_the_demo_walks_the_whole_road(found: dict[str, Any], runs: Path) -> None:
    run = runs / "demo"
    for name in ("evaluation.json", "benchmark.json", "report.html", "points"):
        assert (run / name).exists()
    assert found["report"] == str(run / "report.html")
    sizes = [batch["batch_size"] for batch in found["benchmark"]["results"][0]["batches"]]
    assert sizes == [batch["batch_size"] for batch in found["fastest"]] == [1, 64]
    assert all(batch["exit_share"][0] == 1 for batch in found["fastest"])
    assert [entry["digits"] for entry in found["by_digits"]] == [1, 2, 3, 4]
    assert sum(entry["images"] for entry in found["by_digits"]) == 256
    assert found["evaluation"]["plain"] is not None


def test_the_closing_words_are_plain(found: dict[str, Any]) -> None:
    text = "\n".join(sentences(found))
    assert "interval" in text
    assert found["report"] in text
    assert ("NOT kept" in text) == (not found["kept"])
    assert "NOT kept" in "\n".join(sentences(found | {"kept": False}))


def test_the_demo_replaces_its_own_folder_only(
    offramp: Offramp, found: dict[str, Any], runs: Path, tmp_path: Path
) -> None:
    stale = runs / "demo" / "stale.txt"
    stale.write_text("from the earlier demo")
    shown = offramp("demo", *TINY, "--runs", runs, "--images", 64)
    assert shown.code == 0
    assert not stale.exists()
    assert "fastest exit" in shown.out
    assert str(runs / "demo" / "report.html") in shown.out
    assert json.loads((runs / "demo" / "evaluation.json").read_text())["samples"] == 256
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("years of work")
    refused = offramp("demo", "--runs", tmp_path)
    assert "does not replace it" in refused.sentence
    assert (tmp_path / "demo" / "thesis.txt").is_file()
