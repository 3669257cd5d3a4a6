"""Training numbers: configs, losses, validation, and what is refused before a step is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import offramp
from offramp.data import batches, open_dataset
from offramp.errors import OfframpError
from offramp.exits import EXITS
from offramp.model_config import ModelConfig
from offramp.tasks import Target
from offramp.training import RECIPES
from offramp.training.recipe import Step
from offramp.training.run_config import RunConfig
from offramp.training.validation import exit_accuracy, exit_figures
from regression_model import SMALL, blobs, regression_model

CPU = torch.device("cpu")
RUN: dict[str, Any] = {
    "name": "x",
    "model": {"backbone": "vit_tiny_patch16_224", "image_size": 24, "backbone_args": SMALL},
    "exits": {"layout": "linear", "at": [2]},
    "data": {"name": "count-blobs"},
    "recipe": {"name": "joint"},
}


def test_the_task_comes_from_the_data() -> None:
    data = blobs()
    model = RunConfig.model_validate(RUN).build(data)
    assert model.config.task == "regression"
    assert model.config.num_classes == 1
    assert model.labels == ["blobs"]
    assert model.config.target == data.target
    smooth = RunConfig.model_validate(RUN | {"model": RUN["model"] | {"smooth_l1": 0.5}})
    built = smooth.build(data).config.target
    assert built is not None
    assert built.smooth == 0.5
    with pytest.raises(OfframpError, match=r"model\.smooth_l1 is for regression"):
        smooth.build(open_dataset("digits-grid"))
    wrong = RunConfig.model_validate(RUN | {"model": RUN["model"] | {"task": "classification"}})
    with pytest.raises(OfframpError, match=r"model\.task = classification, but count-blobs"):
        wrong.build(data)


def test_a_regression_model_survives_the_disk(tmp_path: Path) -> None:
    model = regression_model()
    model.save_pretrained(tmp_path)
    again = offramp.load(tmp_path)
    assert again.config == model.config
    assert again.fingerprint() == model.fingerprint()
    assert "One number (blobs)" in (tmp_path / "README.md").read_text()


def test_impossible_models_are_refused() -> None:
    common: dict[str, Any] = {
        "image_size": 24,
        "backbone_args": SMALL,
        "exits": "linear",
        "at": [1],
    }
    with pytest.raises(OfframpError, match="a regression model has one output"):
        offramp.create("vit_tiny_patch16_224", num_classes=3, task="regression", **common)
    with pytest.raises(OfframpError, match="target goes with task='regression'"):
        offramp.create("vit_tiny_patch16_224", num_classes=3, target=Target(), **common)
    sound = regression_model().config.model_dump()
    with pytest.raises(ValidationError, match="one output, not 2"):
        ModelConfig.model_validate(sound | {"num_classes": 2})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mixup": 0.2}, r"recipe\.joint\.augment\.mixup = 0\.2 mixes classes"),
        ({"cutmix": 1.0}, r"recipe\.joint\.augment\.cutmix = 1 mixes classes"),
        ({"label_smoothing": 0.1}, r"recipe\.joint\.augment\.label_smoothing = 0\.1 mixes"),
    ],
)
def test_mixing_numbers_is_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(OfframpError, match=sentence):
        offramp.fit(
            regression_model(),
            recipe="joint",
            data=blobs(),
            progress=False,
            joint={"epochs": 1, "batch_size": 16, "augment": options},
        )


def test_model_data_and_recipe_must_be_for_one_task() -> None:
    options: dict[str, Any] = {"progress": False}
    with pytest.raises(OfframpError, match="digits-grid is data for classification, but the model"):
        offramp.fit(regression_model(), recipe="joint", data="digits-grid", **options)
    with pytest.raises(OfframpError, match="recipe 'lgvit' teaches classification"):
        offramp.fit(regression_model(), recipe="lgvit", data=blobs(), **options)
    with pytest.raises(OfframpError, match="has 10 classes, but the model has 1"):
        offramp.collect(regression_model(), "digits-grid", progress=False)


@pytest.mark.parametrize("name", ["finetune", "joint", "frozen"])
def test_the_loss_of_a_stage_is_the_distance_in_units_of_the_spread(
    name: str, tmp_path: Path
) -> None:
    model, data = regression_model(), blobs()
    stage = RECIPES.get(name)().stages(model)[-1]
    batch = next(iter(batches(data.split("test"), batch_size=8, preprocessing=model.preprocessing)))
    with torch.no_grad():
        found = stage.objective(model, tmp_path)(Step(batch.images, batch.labels, batch.ids, 1))
        said = torch.stack([out.logits[:, 0] for out in model(batch.images)])
    target = model.config.target
    assert target is not None
    distance = (said - (batch.labels - target.mean) / target.std).abs().mean(dim=1)
    wanted = {"finetune": distance[-1], "joint": distance.mean(), "frozen": distance[:-1].sum()}
    torch.testing.assert_close(found["loss"], wanted[name])


def test_validation_is_in_the_unit_of_the_targets() -> None:
    model, data = regression_model(), blobs()
    figures = exit_figures(model, data.split("validation"), device=CPU)
    records = offramp.collect(model, data, split="validation", progress=False)
    for found, wanted in zip(figures, records.figures, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    worth = exit_accuracy(model, data.split("validation"), device=CPU)
    assert worth == pytest.approx([-f["mae"] for f in figures], abs=1e-3)


def test_blobs_are_learned_and_logged(tmp_path: Path) -> None:
    data = blobs(train=1024, validation=200)
    target = data.target
    assert target is not None
    model = regression_model(mean=target.mean, std=target.std)
    settings = {"epochs": 4, "batch_size": 64, "lr": 3e-3, "sched": "cosine"}
    offramp.fit(
        model, recipe="joint", data=data, run=tmp_path, progress=False, device="cpu", joint=settings
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["metric"] == "mae" for line in lines)
    assert set(lines[-1]["validation_rmse"]) == set(model.exit_names)
    assert lines[-1]["validation_final"] == lines[-1]["validation"]["final"]
    guessing = (data.split("validation").labels - target.mean).abs().mean().item()
    assert lines[-1]["validation_final"] < 0.6 * guessing


def test_learning_to_exit_learns_the_size_of_the_error(tmp_path: Path) -> None:
    exits = [{"after": k, "head": "linear", "options": {"lte": True}} for k in (1, 2, 3)]
    model, data = regression_model(exits), blobs()
    batch = next(iter(batches(data.split("test"), batch_size=8, preprocessing=model.preprocessing)))
    objective = RECIPES.get("berxit")().stages(model)[-1].objective(model, tmp_path)
    found = objective(Step(batch.images, batch.labels, batch.ids, 1))
    assert model.config.target is not None
    records = offramp.collect(model, data, split="test", progress=False)
    error = -records.worth[:8, :3] / model.config.target.std
    learned = (records.signals["certainty"][:8, :3] - (1 - error.tanh())).square().mean(dim=0)
    torch.testing.assert_close(found["certainty"], learned.sum(), rtol=1e-4, atol=1e-5)
    records = offramp.collect(model, data, progress=False)
    point = offramp.calibrate(records, policy="learned", max_drop=0.5)
    assert point.policy["name"] == "learned"
    assert point.drop <= 0.5
    runner = offramp.compile(model, point)
    assert runner(batch.images).values.shape == (8,)


@pytest.mark.parametrize("head", [n for n in EXITS.names() if n != "member"])
def test_every_head_can_answer_with_one_number(head: str) -> None:
    model = regression_model(head)
    said: Any
    for said in model(torch.randn(2, 3, 24, 24)):
        assert said.logits.shape == (2, 1)
        assert torch.isfinite(said.logits).all()
