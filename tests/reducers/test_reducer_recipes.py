"""Recipes that train reducers: schedules, loss terms, what moves and at which rate."""

from pathlib import Path

import pytest
import torch
from reduced_models import noise, reduced_model
from torch.nn import functional as F

import offramp
from offramp.data import open_dataset
from offramp.errors import OfframpError
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.training import RECIPES
from offramp.training.passage import passage
from offramp.training.recipe import StageSettings, Step
from offramp.training.recipes.dynamicvit import Lessons, SparseDistillation, predictors
from offramp.training.recipes.evit import ShrinkingCrossEntropy, shrinking_rate
from offramp.training.recipes.evo_levit import FourHeads
from offramp.training.recipes.evo_vit import LayerToStage
from offramp.training.run_config import RunConfig
from offramp.training.schedule import learning_rates, scale_rates
from offramp.zoo.evo_levit import EvoBlock

BRIEF = {"epochs": 1, "batch_size": 64}


def batch(epoch: int = 0) -> Step:
    return Step(noise(6), torch.arange(6), torch.arange(6), 0, epoch)


def test_evits_rate_falls_by_a_cosine() -> None:
    rates = [shrinking_rate(epoch, 0.7, 10, 100) for epoch in (0, 9, 10, 60, 110, 299)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.85, 0.7, 0.7])
    assert shrinking_rate(0, 0.7, 0, 0) == 0.7


def test_evit_trains_at_the_epochs_rate_and_leaves_its_own_behind() -> None:
    model = reduced_model({"name": "evit", "keep": 0.5}, [{"after": 2, "head": "linear"}])
    objective = ShrinkingCrossEntropy(model, 1, 2, "uniform")
    full = objective(batch(0))
    said = [
        outputs[0] for outputs in reduced_model(None, [{"after": 2, "head": "linear"}])(noise(6))
    ]
    assert float(full["rate"]) == 1
    expected = F.cross_entropy(said[1], torch.arange(6))
    torch.testing.assert_close(full["final"], expected, atol=1e-4, rtol=1e-4)
    assert float(objective(batch(2))["rate"]) == pytest.approx(0.75)
    objective.close()
    assert model.chain.reducer.rate == 0.5


def test_evo_vit_goes_from_layers_to_stages() -> None:
    model = reduced_model({"name": "evo_vit"}, [{"after": 3, "head": "linear"}])
    objective = LayerToStage(model, 2, "uniform")
    values = objective(batch(1))
    assert model.chain.reducer.selection == "layer"
    early = F.cross_entropy(model(noise(6))[0][0], torch.arange(6))
    expected = (early + (values["average"] + values["class"]) / 2) / 2
    torch.testing.assert_close(values["loss"], expected, atol=1e-5, rtol=1e-4)
    objective(batch(2))
    assert model.chain.reducer.selection == "stage"
    final = F.cross_entropy(model(noise(6))[-1][0], torch.arange(6))
    torch.testing.assert_close(objective(batch(2))["average"], final, atol=1e-5, rtol=1e-4)


def test_evo_vit_trains_the_class_tokens_head_too() -> None:
    model = reduced_model({"name": "evo_vit"}, []).train()
    LayerToStage(model, 0, "uniform")(batch())["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dynamicvits_terms_follow_the_card() -> None:
    torch.manual_seed(3)
    model = reduced_model("dynamicvit", []).train()
    objective = SparseDistillation(model, Lessons(), "uniform")
    values = objective(batch())
    expected = (
        values["task"] + 2 * values["ratio"] + 0.5 * values["prediction"] + 0.5 * values["tokens"]
    )
    torch.testing.assert_close(values["loss"], expected)
    values["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert 0 < float(values["kept"].detach()) < 1


def test_dynamicvit_has_nothing_to_learn_from_itself_unpruned() -> None:
    model = reduced_model({"name": "dynamicvit", "keep": 1.0}, [])
    values = SparseDistillation(model, Lessons(), "uniform")(batch())
    for name in ("ratio", "prediction", "tokens"):
        torch.testing.assert_close(values[name], torch.zeros(()), atol=1e-6, rtol=0)


def test_rates_are_multiples_of_the_stages_under_every_schedule() -> None:
    fast, slow = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    for sched in ("constant", "cosine", "linear"):
        optimizer = torch.optim.SGD([fast, slow], lr=0.5)
        scale_rates(optimizer, [slow], 0.01)
        settings = StageSettings(lr=0.5, sched=sched, epochs=4)
        schedule = learning_rates(optimizer, settings, 5)
        for step in (0, 7):
            schedule.step_update(step)
            rates = {
                id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]
            }
            assert rates[id(slow)] == pytest.approx(0.01 * rates[id(fast)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("evit", {"evit": BRIEF}),
        ("evo_vit", {"evo_vit": {**BRIEF, "warmup_epochs": 0}}),
        ("dynamicvit", {"predictors": BRIEF, "dynamicvit": BRIEF}),
        ("joint", {"joint": BRIEF}),
    ],
)
def test_recipes_train_from_end_to_end(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    reducer = "tome" if name == "joint" else name
    model = reduced_model(reducer, [{"after": 2, "head": "linear"}])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = open_dataset("digits", limit=200)
    fit(model, recipe=name, data=data, progress=False, device="cpu", **options)
    after = model.state_dict()
    still = {key for key in before if torch.equal(before[key], after[key])}
    frozen = {"chain.backbone.cls_token", "chain.backbone.pos_embed"}
    assert still == (frozen if name == "dynamicvit" else set())


def test_only_predictors_move_in_the_first_stage() -> None:
    model = reduced_model("dynamicvit", [])
    data = open_dataset("digits", limit=200)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit(
        model,
        recipe="dynamicvit",
        data=data,
        progress=False,
        device="cpu",
        predictors=BRIEF,
        dynamicvit={"epochs": 0},
    )
    moved = {k for k, value in model.state_dict().items() if not torch.equal(before[k], value)}
    assert moved
    assert all(key.startswith("chain.reducer.predictors") for key in moved)
    assert len(predictors(model)) == len(moved)


@pytest.mark.parametrize("name", ["evit", "evo_vit", "dynamicvit"])
def test_recipes_refuse_models_without_their_reducer(name: str) -> None:
    model: MultiExitModel = reduced_model("tome", [])
    stages = RECIPES.get(name)().stages(model)
    with pytest.raises(OfframpError, match=f"recipe {name} trains the reducer {name}"):
        stages[0].objective(model, Path())


def test_a_recipe_file_names_the_reducer() -> None:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "model": {
                "backbone": "deit_tiny_patch16_224",
                "image_size": 32,
                "backbone_args": {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
                "reducer": {"name": "tome", "r": 2},
            },
            "exits": [],
            "data": {"name": "digits"},
            "recipe": {"name": "joint"},
        }
    )
    model = config.build(open_dataset("digits"))
    assert model.chain.reducer.merged == [2] * 4
    assert RunConfig.model_validate(config.dump()) == config


def test_evo_levit_learns_its_trade_offs_late() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 3, 4), "depth": (3, 1, 1)}
    model = offramp.create(
        "evo_levit_128s",
        exits="linear",
        at=[2],
        num_classes=10,
        image_size=80,
        backbone_args={**sizes, "auxiliary": True},
    ).eval()
    images, targets = noise(6, 80), torch.arange(6)
    objective = FourHeads(model, 2, "uniform")
    blocks = [step for step in model.backbone.steps if isinstance(step, EvoBlock)]

    def settled(epoch: int) -> tuple[set[bool], set[bool]]:
        values = objective(Step(images, targets, targets, 0, epoch))
        states = passage(model, images).states
        heads = [F.cross_entropy(a, targets) for a in model.backbone.answers(*states[-1])]
        early = F.cross_entropy(model(images)[0][0], targets)
        torch.testing.assert_close(values["loss"], (early + sum(heads) / 4) / 2)
        return {b.layered for b in blocks}, {b.attn.learned for b in blocks}

    assert settled(1) == ({True}, {False})
    assert settled(2) == ({False}, {True})
    settled(0)
    objective.close()
    assert {b.attn.learned for b in blocks} == {True}
    model.train()
    objective(Step(images, targets, targets, 0, 2))["loss"].backward()
    heads = [model.backbone.head_cls, model.backbone.head_cls_dist]
    assert all(p.grad is not None for head in heads for p in head.parameters())


def test_evo_levit_needs_the_class_tokens_heads() -> None:
    for model in (reduced_model(None), offramp.create("evo_levit_128s", exits=[])):
        with pytest.raises(OfframpError, match=r"backbone_args\.auxiliary"):
            FourHeads(model, 0, "uniform")
