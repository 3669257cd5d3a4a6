"""The examples run as they stand."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.calibration import Records, calibrate, records_meta
from offramp.costs.macs import model_costs
from offramp.data.transforms import eval_transform
from offramp.policies import Confidence
from offramp.runtime.bundle import export_bundle, load_bundle
from tiny import tiny_model

FOLDER = Path(__file__).parents[1] / "examples"
WITH_FILES = {"exit_early_anywhere"}  # the others need no arguments
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in WITH_FILES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_single_onnx_answers_images_without_offramp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model([{"after": 2, "head": "linear"}])
    names = [f"class {i}" for i in range(10)]
    model.config.labels = names
    with torch.no_grad():
        model.exits[0].classifiers.heads[0].weight.mul_(20)
    # small ones are shown whole, photos cropped
    sizes = [(32, 32), (50, 20), (64, 64), (65, 64), (100, 80), (90, 200), (301, 300), (70, 70)]
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(len(sizes))]
    for path, (width, height) in zip(paths, sizes, strict=True):
        noise = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    prepare = eval_transform(model.preprocessing)
    images = torch.stack([prepare(Image.open(path)) for path in paths])

    with torch.inference_mode():
        logits = torch.stack([said.logits for said in model(images)], 1)
    meta = records_meta(
        model, dataset="noise", split="calibration", costs=model_costs(model), engine="onnxruntime"
    )
    records = Records.from_logits(logits, logits[:, -1].argmax(-1), meta=meta)
    scores = logits[:, 0].softmax(-1).amax(-1).sort().values
    policy = Confidence([float(scores[3:5].mean()), 0.0])
    point = calibrate(records, max_drop=100.0).model_copy(
        update={"policy": policy.to_config(), "active": (0,)}
    )
    export_bundle(model, point, tmp_path / "bundle", images=images)
    wanted = load_bundle(tmp_path / "bundle")(images)
    assert wanted.exit.bincount().tolist() == [4, 4]

    arguments = ["script", tmp_path / "bundle" / "single.onnx", *paths]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    runpy.run_path(str(FOLDER / "exit_early_anywhere.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", score")[0] for line in lines] == [
        f"{path}: {names[label]} (left at: {model.exit_names[k]}"
        for path, label, k in zip(paths, wanted.labels, wanted.exit, strict=True)
    ]


def test_the_example_for_anywhere_needs_nothing_of_ours() -> None:
    script = (FOLDER / "exit_early_anywhere.py").read_text()
    imported = {line.split()[1] for line in script.splitlines() if line.startswith(("im", "from"))}
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
