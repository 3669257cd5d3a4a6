"""The whole road with numbers: train, calibrate, eval, predict, report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.calibration import Records
from offramp.report.findings import Findings
from offramp.runs import RunFolder

RECIPE = Path(__file__).parents[2] / "recipes/vit_tiny_count_blobs_24_joint_linear.yaml"
SHORT = (
    "data.options={sizes: {train: 640, calibration: 240, validation: 100, test: 240}}",
    "recipe.joint.epochs=3",
    "model.backbone_args={patch_size: 6, embed_dim: 24, depth: 4, num_heads: 3}",
    "exits.at=[1, 2, 3]",
    "name=blobs",
)


@pytest.fixture(scope="module")
def run(offramp: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    answer = offramp("train", RECIPE, *SHORT, "--runs", runs, "--json")
    assert answer.code == 0, answer.err
    options = ("--policy", "settled", "--max-drop", 0.25, "--name", "first")
    answer = offramp("calibrate", runs / "blobs", *options, "--json")
    assert answer.code == 0, answer.err
    point = answer.json["point"]
    assert point["promise"] == point["promise"] | {
        "kind": "max_drop",
        "value": 0.25,
        "unit": "MAE",
    }
    assert point["drop"] <= 0.25
    return runs / "blobs"


def test_eval_reports_errors_not_accuracies(offramp: Callable[..., Any], run: Path) -> None:
    found = offramp("eval", run, "--json").json
    assert found["task"] == "regression"
    records = Records.load(run / "records-test.safetensors")
    error = (records.prediction - records.labels[:, None]).double()
    assert [row["mae"] for row in found["exits"]] == pytest.approx(error.abs().mean(0).tolist())
    assert [row["rmse"] for row in found["exits"]] == pytest.approx(
        error.square().mean(0).sqrt().tolist()
    )
    assert all("accuracy" not in row for row in found["exits"])
    point = found["points"]["first"]
    assert point["figures"]["mae"] - point["full_figures"]["mae"] == pytest.approx(point["drop"])
    text = offramp("eval", run).out
    for words in ("MAE", "RMSE", "MAE at most 0.25 above the full model's"):
        assert words in " ".join(text.split())
    assert "accuracy" not in text
    assert "MAE | RMSE | layers" in (run / "README.md").read_text()


def test_predict_counts(offramp: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    picture = np.zeros((24, 24), np.uint8)
    Image.fromarray(picture).save(tmp_path / "none.png")
    answer = offramp("predict", run, tmp_path / "none.png", "--json").json["answers"][0]
    assert answer["of"] == "blobs"
    assert isinstance(answer["value"], float)
    assert "label" not in answer
    text = offramp("predict", run, tmp_path / "none.png").out
    assert f"{answer['value']:.2f} blobs" in text


def test_bench_shows_the_error(offramp: Callable[..., Any], run: Path) -> None:
    known = offramp("eval", run, "--json").json["points"]["first"]
    options = ("--batch", "4", "--rounds", "1", "--images", "8", "--point", "first")
    found = offramp("bench", run, *options, "--json").json["results"][0]
    assert (found["metric"], found["accuracy"]) == ("MAE", known["accuracy"])
    text = " ".join(offramp("bench", run, *options).out.split())
    assert f"MAE {known['accuracy']:.3f}, full model {known['full_accuracy']:.3f}" in text


def test_a_mean_distance_is_proved(offramp: Callable[..., Any], run: Path) -> None:
    asked = ("--policy", "settled", "--risk", 3, "--risk-kind", "mean_deviation", "--cap", 8)
    answer = offramp("calibrate", run, *asked)
    assert answer.code == 0, answer.err
    said = " ".join(answer.out.split())
    assert "distance from the full model's number is at most 3, distances above 8 counted" in said
    assert "away on average" in said
    (point,) = (run / "points").glob("settled-risk-3-cap-8-mean-deviation.json")
    point.unlink()
    assert "needs a cap above 0" in offramp("calibrate", run, *asked[:-2]).sentence
    assert "risk = 9, but" in offramp("calibrate", run, *asked, "--risk", 9).sentence


def test_policies_for_classes_are_refused_in_one_sentence(
    offramp: Callable[..., Any], run: Path
) -> None:
    for policy in ("confidence", "entropy"):
        answer = offramp("calibrate", run, "--policy", policy, "--max-drop", 1)
        assert f"policy '{policy}' is for classification" in answer.sentence
        assert "settled" in answer.sentence


def test_report_speaks_of_mae(offramp: Callable[..., Any], run: Path) -> None:
    assert offramp("eval", run, "--json").code == 0
    answer = offramp("report", run)
    assert answer.code == 0, answer.err
    page = (run / "report.html").read_text()
    for words in (
        "MAE against speed-up",
        "MAE at most 0.25 above",
        "of MAE",
        "RMSE<br>",
        "Blobs per image",
    ):
        assert words in page
    assert "Reliability" not in page
    assert "% sure" not in page
    assert "oracle" not in page
    plots = {path.stem for path in (run / "plots").glob("*.png")}
    assert {"tradeoff", "exits", "training", "by-blobs"} <= plots
    assert "reliability" not in plots


def test_compare_shows_errors(offramp: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    assert offramp("eval", run, "--json").code == 0
    exits = json.loads((run / "evaluation.json").read_text())["exits"]
    options = ("--budgets", 0.9, "--out", tmp_path / "found.json")
    text = " ".join(offramp("compare", f"{run}:settled", *options).out.split())
    assert f"against blobs (MAE {exits[-1]['mae']:.3f}" in text
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["task"] == "regression"
    assert found["reference_accuracy"] == pytest.approx(exits[-1]["mae"])
    [method] = found["methods"]
    assert {name: spread["mean"] for name, spread in method["exits"].items()} == pytest.approx(
        {row["name"]: row["mae"] for row in exits}
    )
    assert 0 < method["at_budget"]["0.9"]["mean"] < 2 * exits[0]["mae"]
    assert f"| blobs | settled | {exits[-1]['mae']:.3f} |" in (tmp_path / "found.md").read_text()


def test_all_figures_of_an_exit_are_of_the_same_records(run: Path) -> None:
    found = Findings(RunFolder(run))
    some = found.records.part(torch.arange(50))
    assert found.more_of(found.records) == found.more
    assert found.more_of(some) == [{"rmse": row["rmse"]} for row in some.figures]


def test_metrics_name_what_they_measure(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["metric"] == "mae"
    assert lines[-1]["validation"]["final"] <= lines[-1]["validation_rmse"]["final"]
    assert torch.isfinite(torch.tensor(list(lines[-1]["validation"].values()))).all()
