"""The page: complete, self-contained, and honest about what was not measured."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import invented_benchmark, latencies

from offramp.calibration import Records, reliability
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.joint_calibration import calibrate_jointly
from offramp.reducers import ReducerSpec
from offramp.report import facts, gallery, write_report
from offramp.report.findings import Findings
from offramp.report.leavers import groups
from offramp.report.style import css_variables, ramp
from offramp.report.timing import NOT_MEASURED, read_timing
from offramp.report.tradeoff import panels, plot_panel, plot_tradeoff
from offramp.runs import RunFolder, calibrate_run

PLOTS = {"tradeoff", "exits", "accuracy", "reliability", "training", "by-digits", "images"}
VOID = {"meta", "img", "br", "path", "circle", "rect", "use"}


class Balanced(HTMLParser):
    """Every opened element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@pytest.fixture(scope="module")
def page(made_run: tuple[RunFolder, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with two points, a benchmark and latencies."""
    path = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(made_run[0].path, path)
    run = RunFolder(path)
    write_json(path / "benchmark.json", invented_benchmark(run, made_run[1]))
    return write_report(run)


def test_page_is_one_well_formed_file_without_requests(page: Path) -> None:
    html = page.read_text()
    assert page.name == "report.html"
    assert "http" not in html
    assert "url(" not in html.replace("url(#", "")
    assert not re.search(r"<(script|link|iframe)\b", html)
    assert all(source.startswith("data:image/png;base64,") for source in sources(html))
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []


def sources(html: str) -> list[str]:
    return re.findall(r'src="([^"]*)"', html)


def test_page_shows_the_key_figures(page: Path, name: str) -> None:
    text = text_of(page.read_text())
    evaluation = read_json(page.parent / "evaluation.json")
    point = evaluation["points"][name]
    assert f"1.37× faster, {abs(point['drop']):.2f} points" in text
    assert "1.52× at batch 8" in text
    for figure in (point["accuracy"], evaluation["exits"][-1]["accuracy"], 87.65):
        assert f"{figure:.2f} %" in text
    for figure in (point["speedup_layers"], point["speedup_macs"]):
        assert f"{figure:.2f}×" in text
    low, high = (f"{value:+.2f}".replace("-", "−") for value in point["drop_interval"])
    assert f"95 % interval of the loss {low} … {high} points" in text
    assert "Promise kept" in text if point["kept"] else "Promise NOT kept" in text
    assert NOT_MEASURED not in text
    assert f"offramp calibrate run --max-drop 1 --name {name}" in text
    assert "offramp calibrate run --policy entropy --max-cost 0.9 --name older" in text


def test_every_exit_has_its_row_and_colour(page: Path) -> None:
    html = page.read_text()
    for block in (1, 2, 3):
        assert f"everything at block {block}" in html
    for k in range(4):
        assert f"--exit-{k}:" in html
        assert f"var(--exit-{k})" in html


def test_every_exit_says_how_well_it_ranks_its_errors(page: Path) -> None:
    rows = ranked_exits(RunFolder(page.parent))
    assert all(row["ranking"] in text_of(page.read_text()) for row in rows)


def test_errors_and_the_oracle_are_of_the_points_own_records(run: RunFolder) -> None:
    half = ReducerSpec(name="evo_vit", options={"keep": 0.5, "classifier": "class"})
    calibrate_jointly(run, [half], max_drop=100.0, progress=False, name="half")
    ranked_exits(run)
    findings = Findings(run)
    assert findings.oracle[-1].accuracy == pytest.approx(any_right(findings))


def ranked_exits(run: RunFolder) -> list[facts.Row]:
    """The table of the newest point, its AUROCs held against counted pairs."""
    found = Findings(run)
    chosen = found.headline
    assert chosen is not None
    temperatures = chosen.point.policy["temperatures"]
    rows = facts.exits(found, chosen, reliability(chosen.records))
    for k, row in enumerate(rows):
        confidence = (chosen.records.logits[:, k] / temperatures[k]).softmax(-1).amax(-1)
        right = chosen.records.correct[:, k]
        pairs = confidence[right][:, None] - confidence[~right]
        share = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean()
        assert float(row["ranking"]) == pytest.approx(float(share), abs=6e-4)
    return rows


def test_nothing_drawn_is_above_the_oracle(run: RunFolder, name: str) -> None:
    write_json(run.path / "benchmark.json", invented_benchmark(run, name))
    findings = Findings(run)
    bound = findings.oracle
    assert bound[0].accuracy == pytest.approx(findings.static[0].accuracy)
    assert bound[-1].accuracy == pytest.approx(any_right(findings))
    fronts = [spot for front in findings.fronts for spot in front.spots]
    for panel in panels(findings):
        costs = [1 / (panel.pick(spot) or 0) for spot in bound]
        assert costs == sorted(costs)
        for spot in (*fronts, *findings.static):
            reach = np.interp(1 / (panel.pick(spot) or 0), costs, [b.accuracy for b in bound])
            assert spot.accuracy <= reach + 1e-9
        (axis,) = plot_panel(findings, panel).axes
        drawn = [line.get_xydata().tolist() for line in axis.lines]
        corners = [[panel.pick(spot), spot.accuracy] for spot in bound]
        assert corners in drawn
    labels = [text.get_text() for text in plot_tradeoff(findings).legends[0].get_texts()]
    assert "oracle (knows which exit is right)" in labels
    assert "oracle (knows which exit is right)" in write_report(run).read_text()


def any_right(findings: Findings) -> float:
    """Percent of the newest point's records that some exit is right about."""
    assert findings.headline is not None
    right = findings.headline.records.correct.any(dim=1)
    return 100 * right.double().mean().item()


def test_plots_are_written(page: Path) -> None:
    plots = {file.stem: file for file in (page.parent / "plots").glob("*.png")}
    assert set(plots) == PLOTS
    with Image.open(plots["tradeoff"]) as picture:
        assert picture.width == 2400  # sharp at 1200 px on dense screens


def test_patches_are_followed_under_the_points_reducer(run: RunFolder) -> None:
    assert "What becomes of the patches" not in write_report(run).read_text()
    half = ReducerSpec(name="evo_vit", options={"keep": 0.5, "classifier": "class"})
    calibrate_jointly(run, [half], max_drop=100.0, progress=False, name="half")
    page = write_report(run)
    html = page.read_text()
    assert "Under evo_vit keep = 0.5" in html
    assert html.count('aria-label="tokens, ') == 3
    assert "2 at work" in text_of(html)
    assert "http" not in html
    assert {f"tokens-{number}" for number in (1, 2, 3)} <= {
        file.stem for file in (run.path / "plots").glob("*.png")
    }


def test_time_that_was_not_measured_is_said_to_be_so(run: RunFolder) -> None:
    text = text_of(write_report(run).read_text())
    assert "fewer MACs" in text
    assert text.count(NOT_MEASURED) >= 2
    findings = Findings(run)
    assert all(spot.time is None for spot in (findings.full, *findings.static))
    assert all(spot.time is None for front in findings.fronts for spot in front.spots)


def test_run_without_a_point(bare_run: RunFolder) -> None:
    text = text_of(write_report(bare_run).read_text())
    assert "No operating point yet" in text
    assert "offramp calibrate bare --max-drop 0.5" in text
    assert "everything at block 1" in text
    plots = {file.stem for file in (bare_run.path / "plots").iterdir()}
    assert plots == {"tradeoff", "reliability", "training"}


def test_run_whose_images_are_elsewhere(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(split: str) -> None:
        raise OfframpError("data/… does not exist")

    monkeypatch.setattr(run.data, "split", gone)
    (run.path / "metrics.jsonl").unlink()
    text = text_of(write_report(run).read_text())
    assert "The images that leave first and last" not in text
    assert "Who leaves where" in text
    assert "Training" not in text


def test_point_searched_on_time_brings_its_latencies(run: RunFolder) -> None:
    calibrate_run(run, max_drop=1.0, times={1: latencies(run)}, progress=False, name="timed")
    findings = Findings(run)
    assert findings.headline is not None
    assert findings.headline.name == "timed"
    assert findings.headline.spot.time == pytest.approx(findings.headline.evaluation.speedup_time)
    labels = [front.label for front in findings.fronts]
    assert labels == ["confidence, searched on ms", "confidence", "entropy"]
    assert all(spot.time is not None for spot in findings.static)


def test_speedups_are_those_of_the_evaluation(run: RunFolder, name: str) -> None:
    write_json(run.path / "benchmark.json", invented_benchmark(run, name))
    findings = Findings(run)
    chosen = findings.headline
    assert chosen is not None
    assert chosen.name == name
    assert chosen.spot.accuracy == pytest.approx(chosen.evaluation.accuracy)
    assert chosen.spot.layers == pytest.approx(chosen.evaluation.speedup_layers)
    assert chosen.spot.macs == pytest.approx(chosen.evaluation.speedup_macs)
    assert chosen.spot.time == 1.37  # measured end to end, not added up from pieces
    listed = (run.evaluation() or {})["exits"]
    for spot, exit in zip(findings.static, listed, strict=False):
        assert spot.accuracy == pytest.approx(exit["accuracy"])
        assert spot.layers == pytest.approx(exit["layers"])
        assert spot.macs == pytest.approx(exit["macs"])


def test_plain_models_timed_beside_it_stand_in_the_time_panel(run: RunFolder, name: str) -> None:
    write_json(run.path / "benchmark.json", invented_benchmark(run, name))
    findings = Findings(run)
    for panel in panels(findings):
        (axis,) = plot_panel(findings, panel).axes
        names = [text.get_text() for text in axis.texts if text.get_rotation() == 90]
        at = [line.get_xdata()[0] for line in axis.lines if list(line.get_ydata()) == [0, 1]]
        assert names == (["smaller"] if panel.key == "time" else [])
        assert at == ([1 / 0.625] if panel.key == "time" else [])


def test_harder_images_go_deeper(run: RunFolder) -> None:
    findings = Findings(run)
    assert findings.headline is not None
    found = groups(findings, findings.headline)["digits"]
    assert [group.value for group in found] == [1, 2, 3, 4]
    assert sum(group.count for group in found) == len(findings.records)
    assert found[0].mean_blocks < found[-1].mean_blocks
    for group in found:
        assert sum(group.exit_share) == pytest.approx(1)


def test_shelves_hold_the_first_and_the_last(run: RunFolder) -> None:
    findings = Findings(run)
    assert findings.headline is not None
    first, last = gallery.shelves(findings, findings.headline, count=3)
    assert "surest at" in first.title
    assert len(first.images) == len(last.images) == 3
    assert min(image.confidence for image in first.images) > 0.9
    for image in (*first.images, *last.images):
        assert image.right == (image.label == image.prediction)


def test_ids_find_their_images(run: RunFolder) -> None:
    path = run.path / "records-test.safetensors"
    records = Records.load(path)
    turned = torch.arange(len(records)).flip(0)
    Records.from_logits(
        records.logits[turned], records.labels[turned], ids=records.ids[turned], meta=records.meta
    ).save(path)
    findings = Findings(run)
    assert findings.headline is not None
    for shelf in gallery.shelves(findings, findings.headline):
        for image in shelf.images:
            assert image.right == (image.label == image.prediction)
    assert groups(findings, findings.headline)["digits"][0].mean_blocks < 4


def test_benchmark_of_other_weights_is_left_out(run: RunFolder, name: str) -> None:
    benchmark = invented_benchmark(run, name)
    assert read_timing(benchmark, fingerprints={run.model.fingerprint()}).measured
    assert not read_timing(benchmark, fingerprints={"0" * 16}).measured
    assert read_timing(benchmark).batches("another") == []


def test_broken_benchmark_is_named() -> None:
    with pytest.raises(OfframpError, match=r"benchmark\.json: .*run offramp bench"):
        read_timing({"results": [{"engine": "torch"}]})


def test_no_trained_model(tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match="no run"):
        write_report(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 9, 13])
def test_every_exit_gets_its_own_colour(count: int) -> None:
    for dark in (False, True):
        colours = css_variables(count, dark=dark)
        assert len(set(colours.values())) == len(colours)
    assert len(ramp(["#000000", "#ffffff"], count)) == count
