"""Terminal tables: the right numbers under the right words."""

import io
from typing import Any

import pytest
from report_runs import invented_benchmark
from rich.console import Console
from rich.table import Table

from offramp.calibration import Evaluation
from offramp.report import tables
from offramp.report.timing import NOT_MEASURED
from offramp.runs import RunFolder


def shown(table: Table) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.fixture
def evaluation(made_run: tuple[RunFolder, str]) -> dict[str, Any]:
    found = made_run[0].evaluation()
    assert found is not None
    return found


def test_exits_table(evaluation: dict[str, Any]) -> None:
    text = shown(tables.exits_table(evaluation))
    for row in evaluation["exits"]:
        assert row["name"] in text
        assert f"{row['accuracy']:.2f} %" in text
    assert "digits-grid, test split, 240 samples" in text
    assert "87.65 %" in text
    without = shown(tables.exits_table(evaluation | {"plain": None}))
    assert "plain" not in without


def test_point_table(
    made_run: tuple[RunFolder, str], evaluation: dict[str, Any], name: str
) -> None:
    _, point = made_run[0].point(name)
    held_out = evaluation["points"][name]
    text = shown(tables.point_table(name, point, held_out))
    assert "on the test split" in text
    assert "confidence above" in text
    assert "always" in text
    for share in held_out["exit_share"]:
        assert share == 0 or f"{100 * share:.1f} %" in text
    assert text == shown(tables.point_table(name, point, Evaluation.model_validate(held_out)))
    assert "on the calibration split" in shown(tables.point_table(name, point))


def test_entropy_is_shown_in_nats_from_above(made_run: tuple[RunFolder, str]) -> None:
    _, point = made_run[0].point("older")
    assert tables.threshold_name(point) == "entropy below, nats"
    assert point.thresholds is not None
    first = point.active[0]
    assert tables.threshold(point, first) == f"{-point.thresholds[first]:.4f}"
    patience = point.model_copy(update={"policy": {"name": "patience", "patience": 2}})
    assert tables.threshold(patience, first) == "2"


def test_front_table_is_spread_and_keeps_its_ends(
    made_run: tuple[RunFolder, str], name: str
) -> None:
    _, point = made_run[0].point(name)
    table = tables.front_table(point, rows=3)
    assert table.row_count == min(3, len(point.front))
    text = shown(table)
    assert f"{point.front[-1].accuracy:.2f} %" in text
    assert f"{point.front[0].speedup_layers:.2f}×" in text
    assert tables.spread(list(range(10)), 4) == [0, 3, 6, 9]


def test_bench_table(made_run: tuple[RunFolder, str], name: str) -> None:
    text = shown(tables.bench_table(invented_benchmark(made_run[0], name)))
    assert "1.37×" in text
    assert "1.52×" in text
    assert "−0.6 %" in text
    assert name in text


def test_summary_table(
    made_run: tuple[RunFolder, str], evaluation: dict[str, Any], name: str
) -> None:
    benchmark = invented_benchmark(made_run[0], name, tables=False)
    fastest = [batch | {"speedup_time": 3.21} for batch in benchmark["results"][0]["batches"][:1]]
    text = shown(tables.summary_table(evaluation, name, benchmark, fastest))
    for words in ("plain backbone", "full model", f"point {name}", "fastest exit (block 1)"):
        assert words in text
    for figure in ("time, batch 1", "time, batch 8", "1.37×", "1.52×", "3.21×"):
        assert figure in text


def test_summary_table_without_time(evaluation: dict[str, Any], name: str) -> None:
    text = shown(tables.summary_table(evaluation | {"plain": None}, name))
    assert f"time {NOT_MEASURED}" in text
    assert f"{evaluation['points'][name]['speedup_macs']:.2f}×" in text
