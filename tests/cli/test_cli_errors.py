"""Bad input: one sentence, exit code not 0, and nothing half-written."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from offramp.cli.errors import explain
from offramp.cli.main import run as run_program
from offramp.errors import OfframpError

Offramp = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.backbone=deit_tiny_patch16_244", "deit_tiny_patch16_224"),
        ("exits.layout=lgvut", "did you mean 'lgvit'"),
        ("exits.at=[1,4]", "exits[1].after = 4, but vit_tiny_patch16_224 has 4 blocks (use 1…3"),
        ("exits={layout: mlp, count: 9}", "4 blocks have room for 1…3"),
        ("recipe.name=jiont", "did you mean 'joint'"),
        ("recipe.joint.epoch=3", "unknown key recipe.joint.epoch (did you mean 'epochs'"),
        ("recipe.joint.epochs=many", "recipe.joint.epochs"),
        ("seeed=1", "unknown key seeed (did you mean 'seed'"),
        ("data.name=digits-gird", "did you mean 'digits-grid'"),
        ("data.name=imagefolder:nowhere", "nowhere"),
        ("model.pretrained=nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("seed", "is no override"),
        ("name=../elsewhere", "a plain name"),
    ],
)
def test_a_wrong_recipe_leaves_nothing_behind(
    offramp: Offramp, recipe: Path, tmp_path: Path, override: str, said: str
) -> None:
    answer = offramp("train", recipe, override, "--runs", tmp_path / "runs")
    assert said in answer.sentence
    assert answer.code == 1
    assert not (tmp_path / "runs").exists()


def test_an_empty_data_set(offramp: Offramp, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    spec = f"data.name=imagefolder:{tmp_path / 'empty'}"
    answer = offramp("train", recipe, spec, "--runs", tmp_path / "runs")
    assert "empty" in answer.sentence
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["name: [", "- a\n- b", "\x00"])
def test_a_recipe_that_is_no_recipe(offramp: Offramp, tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    assert "broken.yaml" in offramp("train", tmp_path / "broken.yaml").sentence


def test_training_over_a_finished_run(offramp: Offramp, recipe: Path, run: Path) -> None:
    before = contents(run)
    answer = offramp("train", recipe, "seed=3", "--runs", run.parent)
    assert "already holds a finished run" in answer.sentence
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-drop", "1", "--policy", "confidense"], "did you mean 'confidence'"),
        ([], "exactly one target"),
        (["--max-drop", "1", "--max-cost", "0.5"], "exactly one target"),
        (["--max-drop", "1", "--split", "test"], "calibration on the test split"),
        (["--max-drop", "1", "--split", "tset"], "unknown split 'tset'"),
        (["--max-drop", "1", "--name", "../evil"], "--name '../evil'"),
        (["--max-cost", "0.001"], "the closest takes"),
        (["--max-drop", "-90"], "the closest loses"),
    ],
)
def test_calibrations_that_are_refused(
    offramp: Offramp, run: Path, arguments: list[str], said: str
) -> None:
    before = contents(run)
    assert said in offramp("calibrate", run, *arguments).sentence
    assert contents(run) == before


def test_what_is_not_a_run(offramp: Offramp, tmp_path: Path) -> None:
    for command in (["eval"], ["calibrate", "--max-drop", "1"], ["bench"], ["report"]):
        answer = offramp(command[0], tmp_path, *command[1:])
        assert str(tmp_path) in answer.sentence
    assert not list(tmp_path.iterdir())


def test_truncated_weights(offramp: Offramp, run: Path) -> None:
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    answer = offramp("eval", run)
    assert "model.safetensors: not a complete safetensors file" in answer.sentence


def test_truncated_records(offramp: Offramp, run: Path) -> None:
    records = run / "records-test.safetensors"
    records.write_bytes(records.read_bytes()[:-100])
    assert "records-test.safetensors" in offramp("eval", run).sentence


def test_a_class_count_that_does_not_fit(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text().replace('"num_classes": 10', '"num_classes": 7'))
    assert "shape" in offramp("eval", run).sentence


def test_a_data_set_of_other_classes(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.full((16, 16, 3), i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["name"] = f"imagefolder:{tmp_path / 'pets'}"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (run / "records-test.safetensors").unlink()
    sentence = offramp("eval", run).sentence
    assert "2 classes" in sentence
    assert "10" in sentence


def test_a_point_of_another_model(
    offramp: Offramp, recipe: Path, run: Path, tmp_path: Path
) -> None:
    offramp("train", recipe, "seed=1", "recipe.joint.epochs=1", "--runs", tmp_path / "other")
    other = tmp_path / "other" / "tiny"
    shutil.copytree(run / "points", other / "points")
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(image)
    for answer in (offramp("bench", other), offramp("predict", other, image)):
        assert "belongs to model" in answer.sentence
    assert "belongs to model" in offramp("eval", other).sentence
    assert not (other / "benchmark.json").exists()
    assert not (other / "evaluation.json").exists()


def test_images_that_cannot_be_read(offramp: Offramp, run: Path, tmp_path: Path) -> None:
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(good)
    broken.write_bytes(good.read_bytes()[:40])
    answer = offramp("predict", run, good, broken)
    assert "broken.png: the image cannot be read" in answer.sentence
    assert answer.out == ""
    assert "no such image file" in offramp("predict", run, tmp_path / "absent.png").sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "troch"], "did you mean 'torch'"),
        (["--batch", "1,zwei"], "--batch '1,zwei'"),
        (["--batch", "0"], "--batch '0'"),
        (["--batch", "64", "--images", "8"], "batch size 64 needs as many images"),
        (["--point", "second"], "no point 'second'"),
    ],
)
def test_benchmarks_that_are_refused(
    offramp: Offramp, run: Path, arguments: list[str], said: str
) -> None:
    before = contents(run)
    assert said in offramp("bench", run, *arguments).sentence
    assert contents(run) == before


def test_json_errors_are_one_document_too(offramp: Offramp, tmp_path: Path) -> None:
    answer = offramp("eval", tmp_path / "nothing", "--json")
    assert answer.code == 1
    assert answer.json == {"error": answer.sentence}


def test_misuse_is_one_sentence_and_names_the_help(offramp: Offramp) -> None:
    answer = offramp("trian")
    assert answer.code == 2
    assert "Did you mean 'train'?" in answer.sentence
    assert "offramp train --help" in offramp("train").sentence
    assert "--max-drop" in offramp("calibrate", "x", "--max-drop", "much").sentence


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "runs/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (yaml.YAMLError("bad"), "not valid YAML (bad)"),
        (OfframpError("two\nlines"), "two lines"),
        (RuntimeError("a mistake of ours"), None),
    ],
)
def test_errors_are_explained(error: Exception, said: str | None) -> None:
    assert explain(error) == said


def test_interrupting_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("offramp.runs.train_run", interrupt)
    monkeypatch.setattr("sys.argv", ["offramp", "train", str(recipe)])
    with pytest.raises(SystemExit) as ended:
        run_program()
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err
