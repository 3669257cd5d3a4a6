"""What every recipe keeps: it learns, touches what its stages train, and resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.creation import create
from offramp.data import DataSource, open_dataset
from offramp.model import MultiExitModel
from offramp.training import RECIPES, Recipe, StageSettings
from offramp.training.context import LoopOptions
from offramp.training.loop import Trainer
from offramp.training.metrics import read_metrics
from offramp.training.stage_run import OutOfTimeError

LEARN: dict[str, dict[str, Any]] = {
    "curriculum": {"start": 1.0},  # harder samples raise the loss
    # an epoch of gates, one of heads, one of gates, whose weights stay the same
    "jei_dnn": {"turns": {"every": 3, "balance": "none"}},
}
RESUME: dict[str, dict[str, Any]] = {
    "curriculum": {"start": 0.5, "every": 1, "balanced": True},
    "jei_dnn": {"turns": {"every": 1, "counting": "per_epoch"}},
}
HEADS = {"berxit": "berxit", "jei_dnn": "jei_dnn", "lgvit": "lgvit", "ztw": "ztw"}
REDUCERS = {"dynamicvit", "evit", "evo_vit"}


def evo_levit() -> MultiExitModel:
    sizes = {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 3, 4), "depth": (3, 1, 1)}
    return create(
        "evo_levit_128s",
        exits="mlp",
        at=[1, 3],
        num_classes=10,
        image_size=80,
        backbone_args={**sizes, "auxiliary": True},
    )


OWN = {"evo_levit": evo_levit}


def stage_fields(name: str) -> list[str]:
    fields = RECIPES.get(name).model_fields
    return [key for key, field in fields.items() if field.annotation is StageSettings]


NAMES = [name for name in RECIPES.names() if stage_fields(name)]


def recipe_of(name: str, epochs: int, options: dict[str, Any]) -> Recipe:
    stage = StageSettings(epochs=epochs, batch_size=64, lr=2e-3, sched="constant")
    return RECIPES.get(name)(**dict.fromkeys(stage_fields(name), stage), **options)


def small_model(name: str) -> MultiExitModel:
    """Two heads of the kind a recipe is for, on a backbone with dropout."""
    torch.manual_seed(0)
    if name in OWN:
        return OWN[name]()
    sizes = {"patch_size": 2, "embed_dim": 32, "depth": 4, "num_heads": 2, "proj_drop_rate": 0.1}
    return create(
        "deit_tiny_patch16_224",
        exits=HEADS.get(name, "mlp"),
        at=[1, 3],
        reducer=name if name in REDUCERS else None,
        num_classes=10,
        image_size=8,
        backbone_args=sizes,
    )


def digits(limit: int) -> DataSource:
    return open_dataset("digits", limit={"train": limit, "validation": 32})


def state(model: MultiExitModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_stages_learn_and_change_nothing_but_what_they_train(name: str, tmp_path: Path) -> None:
    model, recipe = small_model(name), recipe_of(name, 3, LEARN.get(name, {}))
    options = LoopOptions(progress=False, device="cpu")
    trainer = Trainer(model, recipe, digits(192), tmp_path, options)
    for k, stage in enumerate(trainer.stages):
        trained = {id(parameter) for parameter in stage.trains(model)}
        names = {n for n, parameter in model.named_parameters() if id(parameter) in trained}
        buffers = {n for n, _ in model.named_buffers()}
        before = state(model)
        trainer = Trainer(model, recipe, digits(192), tmp_path / str(k), options)
        trainer.stages = [stage]
        trainer.train()
        moved = {n for n, value in state(model).items() if not torch.equal(value, before[n])}
        modules = {n.rpartition(".")[0] for n in names}
        assert moved - buffers <= names
        assert {n.rpartition(".")[0] for n in moved & buffers} <= modules
        assert moved & names
        assert all(parameter.requires_grad for parameter in model.parameters())
        # weights may grow while a stage goes on; the final exit's loss has none
        losses = [entry.get("final", entry["loss"]) for entry in read_metrics(tmp_path / str(k))]
        assert len(losses) == 3
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_resuming_after_every_step_changes_nothing(name: str, tmp_path: Path) -> None:
    ends = []
    for run, minutes in (("whole", None), ("pieces", 0.0)):
        model, stops = small_model(name), 0
        recipe = recipe_of(name, 1, RESUME.get(name, {}))
        options = LoopOptions(progress=False, device="cpu", minutes=minutes)
        while True:
            trainer = Trainer(model, recipe, digits(128), tmp_path / run, options)
            try:
                trainer.train(resume=True)
                break
            except OutOfTimeError:
                stops += 1
                model = small_model(name)
        assert stops == (0 if minutes is None else len(trainer.stages))
        metrics = read_metrics(tmp_path / run)
        ends.append((state(model), [{**m, "seconds": 0} for m in metrics]))
    (weights, metrics), (again, entries) = ends
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert metrics == entries
