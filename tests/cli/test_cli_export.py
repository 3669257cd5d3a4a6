"""``offramp export`` and what one can do with a bundle, by the command line alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

Offramp = Callable[..., object]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_from_calibration_to_a_bundle_that_predicts(
    offramp: Offramp, run: Path, picture: Path, target: str
) -> None:
    engine = {"onnx": "onnxruntime", "openvino": "openvino"}[target]
    before = offramp("export", run, "--to", target)
    assert f"no point calibrated on {engine} at float32" in before.sentence
    made = offramp("calibrate", run, "--max-cost", 0.9, "--engine", engine, "--name", "fast")
    assert made.code == 0, made.err
    assert (run / f"records-calibration-{engine}-float32.safetensors").is_file()
    shown = offramp("export", run, "--to", target)
    assert shown.code == 0, shown.err
    bundle = run / "bundles" / "fast"
    assert "segment-0" in shown.out
    assert ("single.onnx" in shown.out) == (target == "onnx")
    assert "already exists" in offramp("export", run, "--to", target).sentence
    again = offramp("export", run, "--to", target, "--overwrite", "--json").json
    assert again["bundle"] == str(bundle)
    answers = offramp("predict", bundle, picture, "--json").json["answers"]
    wanted = offramp("predict", run, picture, "--point", "fast", "--json").json["answers"]
    for key in ("label", "exit", "blocks", "macs_share"):
        assert answers[0][key] == wanted[0][key]
    assert answers[0]["probability"] == pytest.approx(wanted[0]["probability"], abs=1e-4)
    assert "leave out --point" in offramp("predict", bundle, picture, "--point", "fast").sentence


def test_points_of_one_engine_do_not_run_on_another(offramp: Offramp, run: Path) -> None:
    answer = offramp("bench", run, "--engine", "onnxruntime", "--point", "first")
    assert "'first' is not calibrated on onnxruntime at float32" in answer.sentence
    assert "--engine onnxruntime" in answer.sentence


def test_unknown_precisions_are_refused(offramp: Offramp, run: Path) -> None:
    answer = offramp("calibrate", run, "--max-drop", 1, "--engine", "openvino", "--precision", "x")
    assert "'openvino' does not compute in 'x'" in answer.sentence
