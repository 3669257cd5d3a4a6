"""Curricula: pace, ranking, and orders that are pure functions of seed and step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from offramp.data import batches, open_dataset
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.training.context import LoopOptions
from offramp.training.difficulty import difficulty, pace, paced_order, ranked
from offramp.training.loop import Trainer
from offramp.training.recipe import Course
from offramp.training.recipes.curriculum import Curriculum
from offramp.training.run_config import validated
from tiny import tiny_model

HEADS = {"epochs": 1, "batch_size": 32, "lr": 1e-3}


def test_the_pace_grows_to_everything() -> None:
    steps = (0, 99, 100, 250, 399, 400, 500, 10_000_000)
    shares = [pace(step, start=0.1, growth=1.7, every=100) for step in steps]
    assert shares == pytest.approx([0.1, 0.1, 0.17, 0.289, 0.4913, 0.83521, 1.0, 1.0])
    assert pace(0, start=1.0, growth=1.5, every=1) == 1.0


def test_rankings() -> None:
    scores, labels = torch.tensor([0.3, 0.1, 0.9, 0.5]), torch.tensor([0, 0, 1, 1])
    assert ranked(scores, labels, "easy", balanced=False).tolist() == [1, 0, 3, 2]
    assert ranked(scores, labels, "hard", balanced=False).tolist() == [2, 3, 0, 1]
    assert ranked(scores, labels, "easy", balanced=True).tolist() == [1, 3, 0, 2]
    chance = ranked(scores, labels, "random", balanced=False)
    assert sorted(chance.tolist()) == [0, 1, 2, 3]
    assert torch.equal(chance, ranked(scores.flip(0), labels, "random", balanced=False))


def test_every_share_of_a_balanced_ranking_holds_the_classes_in_proportion() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=generator)
    scores = labels + torch.rand(300, generator=generator)  # one class is easier than the next
    easy = ranked(scores, labels, "easy", balanced=False)
    assert labels[easy[:60]].unique().tolist() == [0]
    balanced = labels[ranked(scores, labels, "easy", balanced=True)]
    for share in (30, 60, 150):
        counts = torch.bincount(balanced[:share], minlength=3) / torch.bincount(labels)
        assert counts.max() - counts.min() < 0.03


def model() -> MultiExitModel:
    return tiny_model("linear", image_size=8, patch_size=2, embed_dim=32, num_heads=2)


def course(tmp_path: Path, made: MultiExitModel, *, first: bool = True) -> Course:
    data = open_dataset("digits", limit={"train": 96, "validation": 32})
    options = LoopOptions(progress=False, device="cpu")
    trainer = Trainer(made, Curriculum(heads=HEADS), data, tmp_path, options)
    return Course(trainer.context, "heads", data.split("train"), 7, 3, 32, first)


def test_samples_come_from_the_known_share(tmp_path: Path) -> None:
    at = course(tmp_path, model())
    ranks = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    order = paced_order(at, ranks, start=0.25, growth=2.0, every=2)
    epochs = [order(epoch).reshape(3, 32) for epoch in range(2)]
    known = (24, 24, 48, 48, 96, 96)
    place = np.argsort(ranks.numpy())
    for step, met in enumerate(np.concatenate(epochs)):
        assert place[met].max() < known[step]
        assert len(set(met.tolist())) > min(known[step], 32) / 3
    assert np.array_equal(order(1), epochs[1].ravel())  # no matter what was asked before
    assert not np.array_equal(epochs[0][0], epochs[0][1])


def test_difficulty_is_the_final_exits_loss_at_the_stages_beginning(tmp_path: Path) -> None:
    made = model()
    at = course(tmp_path, made)
    split = at.split
    whole = next(batches(split, batch_size=96, preprocessing=made.preprocessing))
    said = made(whole.images)
    expected = F.cross_entropy(said[-1][0], whole.labels, reduction="none")
    torch.testing.assert_close(difficulty(at, made, [3]), expected)
    early = [F.cross_entropy(out[0], whole.labels, reduction="none") for out in said[:-1]]
    torch.testing.assert_close(difficulty(at, made, [0, 1, 2]), sum(early) / 3)
    with torch.no_grad():
        made.backbone.head.weight.mul_(2)  # a resumed stage has trained since
    again = difficulty(course(tmp_path, made, first=False), made, [3])
    torch.testing.assert_close(again, sum(early) / 3)


def test_bootstrap_ranks_by_an_earlier_run(tmp_path: Path) -> None:
    teacher = model()
    with torch.no_grad():
        teacher.backbone.head.weight.mul_(5)
        teacher.exits[0].classifiers.heads[0].weight.mul_(5)
    teacher.save_pretrained(tmp_path / "earlier")
    made = model()
    recipe = Curriculum(score="bootstrap", previous=str(tmp_path / "earlier"), start=0.1)
    at = course(tmp_path / "run", made)
    met = recipe.order(at)(0)
    expected = ranked(difficulty(at, teacher, [0, 1, 2]), at.split.labels, "easy", balanced=False)
    assert set(met.tolist()) <= set(expected[:10].tolist())


@pytest.mark.parametrize("options", [{"score": "bootstrap"}, {"previous": "runs/x"}])
def test_bootstrap_needs_a_run(options: dict[str, Any]) -> None:
    with pytest.raises(OfframpError, match="score: bootstrap goes with previous: RUN"):
        validated(Curriculum, options, "recipe.")
