"""The frontier as a table, a plot and a section of the page."""

from pathlib import Path

import pytest
from rich.console import Console

from offramp.errors import OfframpError
from offramp.files import write_json
from offramp.frontier import Entry, Frontier
from offramp.report import write_report
from offramp.report.frontier import frontier_table, main_task, plot_frontier, read_frontier
from offramp.report.style import styled
from offramp.runs import RunFolder


def found(fingerprint: str | None = None, engines: tuple[str, ...] = ("torch",)) -> Frontier:
    rows: list[tuple[str, float, float | None, str | None]] = [
        ("fast", 1.0, 70.0, "digits"),
        ("slow", 4.0, 75.0, "digits"),
        ("beaten", 5.0, 74.0, "digits"),
        ("elsewhere", 2.0, 80.0, "ImageNet-1k"),
        ("unknown", 3.0, None, None),
        ("run at point", 4.5, 74.9, "digits"),
    ]
    entries = [
        Entry(
            name=name,
            kind="dynamic" if name.startswith("run") else "static",
            engine=engine,
            precision="float32",
            image_size=(16, 24),
            parameters=10,
            macs=2e9,
            accuracy=accuracy,
            task=task,
            source=None,
            rounds_ms=[ms, 1.1 * ms],
        )
        for engine in engines
        for name, ms, accuracy, task in rows
    ]
    environment = {"hardware": {"threads": 1, "cpu": "one"}}
    return Frontier(
        batch_size=2,
        images=4,
        rounds=2,
        fingerprint=fingerprint,
        environment=environment,
        entries=entries,
    )


def test_table_shows_accuracies_of_one_task() -> None:
    console = Console(width=100, record=True)
    console.print(frontier_table(found(), "torch"))
    lines = console.export_text().splitlines()
    rows = [line.split() for line in lines[4:] if line.strip()]
    assert "accuracy on digits" in lines[0]
    assert "batch 2, 1 thread" in lines[0]
    assert [row[0] for row in rows] == ["fast", "elsewhere", "unknown", "slow", "run", "beaten"]
    assert rows[0] == ["fast", "16×24", "2.000", "1.05", "1.02…1.08", "70.00", "%"]
    assert [row[-1] for row in rows] == ["%", "–", "–", "%", "%", "%"]


def test_plot_has_a_panel_per_engine_and_every_name() -> None:
    with styled("test"):
        made = plot_frontier(found(engines=("torch", "openvino")))
    assert [axis.get_title(loc="left") for axis in made.axes] == ["torch", "openvino"]
    for axis in made.axes:
        names = {text.get_text() for text in axis.texts}
        assert names == {"fast", "slow", "beaten", "elsewhere", "unknown", "run at point"}
    assert made.axes[0].get_ylabel() == "top-1 on digits, %"


def test_names_do_not_cover_each_other() -> None:
    crowd = [
        entry.model_copy(update={"name": f"a_model_with_a_long_name_{i}", "kind": "static"})
        for i, entry in enumerate(e for e in found().entries if e.task == "digits")
    ]
    with styled("test"):
        made = plot_frontier(found().model_copy(update={"entries": crowd}))
        made.draw_without_rendering()
    boxes = [text.get_window_extent() for text in made.axes[0].texts]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_the_task_is_the_dynamic_models_or_the_commonest() -> None:
    assert main_task(found()) == "digits"
    static = [entry for entry in found().entries if entry.kind == "static"]
    assert main_task(found().model_copy(update={"entries": static})) == "digits"
    assert main_task(found().model_copy(update={"entries": static[3:4]})) == "ImageNet-1k"
    nobody = found().model_copy(update={"entries": static[4:]})
    assert main_task(nobody) is None
    with styled("test"):
        assert plot_frontier(nobody).axes[0].get_ylabel() == "no accuracy is known"


def test_page_shows_the_frontier_of_these_weights(run: RunFolder) -> None:
    file = run.path / "frontier.json"
    write_json(file, found("of other weights").report())
    assert "Static models on this machine" not in write_report(run).read_text()
    write_json(file, found(run.model.fingerprint()).report())
    html = write_report(run).read_text()
    assert "Static models on this machine" in html
    assert "static slow already does this" in html
    assert (run.path / "plots" / "frontier.png").is_file()


def test_another_file_is_refused(tmp_path: Path) -> None:
    assert read_frontier(tmp_path / "none.json", "a") is None
    write_json(tmp_path / "frontier.json", {"entries": 3})
    with pytest.raises(OfframpError, match=r"frontier\.json: no result of offramp frontier"):
        read_frontier(tmp_path / "frontier.json", "a")
