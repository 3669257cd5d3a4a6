"""Backbones with BatchNorm: frozen means frozen, and batches of one are answered in words."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.data import open_dataset
from offramp.errors import OfframpError
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.training import RECIPES, StageSettings
from offramp.training.metrics import read_metrics

BRIEF = StageSettings(epochs=1, batch_size=256, lr=2e-3)
SINGLE = StageSettings(epochs=1, batch_size=1, lr=1e-3)
LEVIT = {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 3, 4), "depth": (1, 1, 1)}


def model(exits: str = "linear", *, backbone: str = "mobilenetv3_small_050") -> MultiExitModel:
    """A small convolutional net whose BatchNorms have seen some data."""
    torch.manual_seed(0)
    made = offramp.create(backbone, exits=exits, at=[2, 5], num_classes=10, image_size=32)
    for norm in norms(made.backbone):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def train(made: MultiExitModel, recipe: str, *, limit: int = 600, **options: object) -> None:
    fit(made, recipe=recipe, data=open_dataset("digits", limit=limit), progress=False, **options)


@pytest.mark.parametrize(
    ("recipe", "exits", "stage"),
    [("frozen", "linear", "heads"), ("lgvit", "lph", "self_distillation")],
)
def test_frozen_backbones_keep_their_statistics(recipe: str, exits: str, stage: str) -> None:
    made = model(exits)
    before, fields = statistics(made.backbone), RECIPES.get(recipe).model_fields
    stages = [name for name, field in fields.items() if field.annotation is StageSettings]
    options = {name: StageSettings(epochs=0) for name in stages} | {stage: BRIEF}
    train(made, recipe, **options)
    assert before
    assert all(torch.equal(now, before[name]) for name, now in statistics(made.backbone).items())


def test_trained_backbones_move_theirs() -> None:
    made = model()
    before = statistics(made.backbone)
    train(made, "joint", joint=BRIEF)
    assert not any(torch.equal(now, before[k]) for k, now in statistics(made.backbone).items())


def levit() -> MultiExitModel:
    """LeViT's classifiers begin with a BatchNorm1d over (B, C)."""
    return offramp.create(
        "levit_128s", exits="linear", at=[2], num_classes=10, image_size=64, backbone_args=LEVIT
    )


def test_heads_on_a_frozen_backbone_train_with_batches_of_one(tmp_path: Path) -> None:
    train(levit(), "frozen", limit=40, run=tmp_path, heads=SINGLE)
    assert read_metrics(tmp_path)[-1]["step"] > 1


@pytest.mark.parametrize("made", [levit, model])
def test_norms_that_cannot_see_batches_of_one_say_so(made: Callable[[], MultiExitModel]) -> None:
    with pytest.raises(OfframpError, match=r"stage finetune: batch_size = 1, .*use at least 2"):
        train(made(), "finetune", limit=40, finetune=SINGLE)
