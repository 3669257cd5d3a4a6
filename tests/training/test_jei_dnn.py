"""JEI-DNN: the card's targets, balances, losses and limits; gradients that stay apart; sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import offramp
from offramp.costs import CostTable
from offramp.data import Batch, open_dataset
from offramp.errors import OfframpError
from offramp.exits.gated import gates
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.policies.jei_dnn import exit_mass
from offramp.policies.stopping import stopping_mass
from offramp.training import RECIPES, Objective, StageSettings, Step
from offramp.training.bilevel import GatesAndHeads, Turns
from offramp.training.every_image import EveryImage
from offramp.training.gating import (
    best_exit,
    class_balance,
    coupled_loss,
    exit_values,
    gate_loss,
    gate_targets,
    stopping_targets,
    warm_up_weights,
)
from offramp.training.metrics import read_metrics
from offramp.training.recipes.jei_dnn import JEIDNN, heads
from offramp.training.tradeoffs import relative_costs
from offramp.training.warm_up import WarmUp
from tiny import tiny_model

CE, COSTS = torch.tensor([[1.2, 0.6, 0.55, 0.5]]), torch.tensor([0.25, 0.5, 0.75, 1.0])


# Formulas


@pytest.mark.parametrize(
    ("tradeoff", "best", "targets"),
    [
        (0.0, 4, [0, 0, 0]),
        (0.1, 4, [0, 0, 0]),
        (0.5, 2, [0, 1, 1]),
        (1.0, 2, [0, 1, 1]),
        (5.0, 1, [1, 1, 1]),
    ],
)
def test_the_cards_targets(tradeoff: float, best: int, targets: list[int]) -> None:
    found = best_exit(CE + tradeoff * COSTS)
    assert found.item() == best - 1
    assert gate_targets(found, 3, "subsequent")[0][0].tolist() == targets


@pytest.mark.parametrize(("tradeoff", "value"), [(0.1, 0.8175), (0.5, 1.0075), (5.0, 3.145)])
def test_the_cards_joint_value(tradeoff: float, value: float) -> None:
    mass = exit_mass(torch.tensor([[0.3, 0.5, 0.4]]))
    p = torch.cat([mass.early, mass.final[:, None]], dim=1)
    assert (p * (CE + tradeoff * COSTS)).sum().item() == pytest.approx(value, abs=1e-5)


@given(st.integers(0, 500))
def test_limits_of_the_price(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = 5 * torch.rand(16, 6, generator=generator)
    costs = torch.rand(6, generator=generator).add(0.05).cumsum(0)
    costs = costs / costs[-1]
    assert torch.equal(best_exit(losses), losses.argmin(dim=1))
    gap = (losses.max() - losses.min()) / (costs[1] - costs[0])
    assert best_exit(losses + 1.01 * gap * costs).tolist() == [0] * 16
    paid = [costs[best_exit(losses + p * costs)].mean() for p in (0.0, 0.3, 1.0, 3.0, 9.0)]
    assert paid == sorted(paid, reverse=True)


def test_ties_go_to_the_first_exit() -> None:
    assert best_exit(torch.ones(1, 3)).item() == 0


def test_other_schemes_of_targets() -> None:
    best = torch.tensor([0, 1, 3])
    only, asked = gate_targets(best, 3, "only")
    assert only.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert asked.all()
    same, asked = gate_targets(best, 3, "ignore")
    assert torch.equal(same, only)
    assert asked.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_regret_asks_what_going_on_would_cost() -> None:
    paid = torch.tensor([[0.5, 0.2, 0.9, 0.4], [0.1, 0.2, 0.3, 0.6]])
    stop, go = 1.0, -1.0
    wanted, regret = stopping_targets(paid, torch.tensor([[go, go, go], [go, stop, stop]]))
    assert wanted.tolist() == [[0, 1, 0], [1, 1, 1]]  # the first goes on to the last exit, 0.4
    assert regret.flatten().tolist() == pytest.approx([0.1, 0.2, 0.5, 0.1, 0.1, 0.3])
    wanted, regret = stopping_targets(paid, torch.tensor([[go, go, stop], [go, go, go]]))
    assert wanted.tolist() == [[1, 1, 0], [1, 1, 1]]  # the third gate would let it go at 0.9
    assert regret.flatten().tolist() == pytest.approx([0.4, 0.7, 0.5, 0.5, 0.4, 0.3])


def test_gates_that_learn_from_regret_find_the_best_rule() -> None:
    """Two early exits and a sign that says whose first answer is right: who can leave, leaves."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.rand(4000, generator=generator)
    right = (torch.rand(4000, 3, generator=generator) < torch.stack(
        [sign, sign.clamp_min(0.5), torch.full_like(sign, 0.9)], dim=1
    )).float()  # fmt: skip
    paid = 0.4 * torch.tensor([0.2, 0.6, 1.0]) - right
    weight, bias = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(600):
        gates = sign[:, None] * weight + bias
        wanted, regret = stopping_targets(paid, gates.detach())
        optimizer.zero_grad()
        gate_loss(gates, wanted, torch.ones(2), regret).backward()
        optimizer.step()
    leaves = (-bias / weight).tolist()
    assert leaves[1] == pytest.approx(0.9 - 0.16, abs=0.06)  # 0.24 - s = 0.4 - 0.9
    assert leaves[0] == pytest.approx(0.9 - 0.32, abs=0.06)  # 0.08 - s = 0.4 - 0.9


def test_regret_takes_no_balance() -> None:
    with pytest.raises(ValueError, match="balance = 'exact' beside targets = 'regret'"):
        Turns(targets="regret", balance="exact")
    assert Turns(targets="regret", balance="none").mass is stopping_mass
    assert Turns().mass is exit_mass


def test_other_criteria() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]])
    labels, losses = torch.tensor([0]), torch.tensor([[0.4, 2.4]])
    assert exit_values(losses, logits, labels, "error").tolist() == [[-1.0, 0.0]]
    found = exit_values(losses, logits, labels, "confidence")[0].tolist()
    assert found == pytest.approx([-0.66524, 0.0], abs=1e-5)
    assert exit_values(losses, logits, labels, "loss") is losses


def test_the_cards_balances() -> None:
    counts = torch.tensor([10.0, 30.0, 40.0, 20.0])
    assert class_balance(counts, "exact").tolist() == pytest.approx([5, 7 / 3, 1.5])
    assert class_balance(counts, "cumulative").tolist() == pytest.approx([5, 1.5, 0.25])
    assert class_balance(counts, "none").tolist() == [1, 1, 1]
    assert class_balance(torch.tensor([0.0, 0.0, 9.0]), "exact").tolist() == [5, 5]
    assert class_balance(torch.tensor([9.0, 0.0, 0.0]), "exact").tolist() == [0, 5]
    everybody = class_balance(torch.tensor([9.0, 0.0, 0.0]), "cumulative").tolist()
    assert everybody == pytest.approx([0.2, 0.2])  # ones still teach


def test_the_cards_gate_loss() -> None:
    a, t = torch.tensor([[-1.0, 0.5, 2.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert gate_loss(a, t, torch.tensor([9.0, 2.3333, 1.5])).item() == pytest.approx(
        0.53661, abs=1e-4
    )
    only = gate_loss(a, t, torch.ones(3), torch.tensor([[1.0, 1.0, 0.0]]))
    assert only.item() == pytest.approx((0.31326 + 0.47408) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("coupling", "gradient"),
    [("as_released", [1 / 3] * 3), ("detached", [0.3158, 0.5263, 0.2105])],
)
def test_as_released_the_weights_cancel(coupling: Any, gradient: list[float]) -> None:
    mass, losses = torch.tensor([[0.3, 0.5, 0.2]]), torch.tensor([[1.0, 2.0, 3.0]])
    losses.requires_grad_()
    loss = coupled_loss(mass, losses, coupling)
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert losses.grad is not None
    assert losses.grad[0].tolist() == pytest.approx(gradient, abs=1e-4)


@given(st.integers(0, 100))
def test_as_released_is_the_plain_mean_of_any_batch(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mass = exit_mass(torch.rand(5, 4, generator=generator)).early
    losses = torch.rand(5, 4, generator=generator).requires_grad_()
    loss = coupled_loss(mass, losses, "as_released")
    loss.backward()
    torch.testing.assert_close(loss, losses.mean())
    torch.testing.assert_close(losses.grad, torch.full((5, 4), 1 / 20))


def test_warm_up_weights_of_seven_exits() -> None:
    assert warm_up_weights(7) == [7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("t2t_vit_7", 10, [0.356, 0.463, 0.570, 0.678, 0.785, 0.893, 1]),
        ("t2t_vit_14", 100, [0.129, 0.196, 0.263, 0.330]),
    ],
)
def test_costs_are_true_macs(
    name: str, classes: int, expected: list[float], tmp_path: Path
) -> None:
    depth = int(name.rpartition("_")[2])
    with torch.device("meta"):
        model = offramp.create(
            name, exits="jei_dnn", at=range(1, depth), num_classes=classes, image_size=224
        )
        found = relative_costs(model, "macs", tmp_path)
    assert found[: len(expected)] == pytest.approx(expected, abs=1.5e-3)


def test_costs_of_blocks_files_and_time(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    assert relative_costs(model, "blocks", tmp_path) == [0.25, 0.5, 0.75, 1]
    table = CostTable(unit="ms", body=(1, 1, 2, 4), head=(1, 0, 0, 1), full=8)
    table.save(tmp_path / "table.json")
    found = relative_costs(model, str(tmp_path / "table.json"), tmp_path)
    assert found == pytest.approx([0.2, 0.3, 0.5, 1])
    CostTable(unit="ms", body=(1,) * 3, head=(0,) * 3, full=3).save(tmp_path / "few.json")
    with pytest.raises(OfframpError, match="3 exits, the model 4"):
        relative_costs(model, str(tmp_path / "few.json"), tmp_path)
    timed = relative_costs(model, "time", tmp_path)
    assert timed == sorted(timed)
    assert timed == relative_costs(model, "time", tmp_path)  # measured once


# Objectives


def step(number: int = 0) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    return Step(images, torch.arange(6), torch.arange(6), number)


def joint(model: MultiExitModel, run: Path, **options: Any) -> Objective:
    recipe = JEIDNN(turns=Turns(every=2, **options), tradeoffs=[0.5])
    return recipe.stages(model)[-1].objective(model, run)


def touched(parameters: list[torch.nn.Parameter]) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)


def test_gates_and_heads_learn_in_turn_and_apart(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    objective = joint(model, tmp_path)
    for number in range(6):
        model.zero_grad()
        values = objective(step(number))
        values["loss"].backward()
        gating = number // 2 % 2 == 0
        assert set(values) == {"loss", "gates" if gating else "heads"}
        assert touched(gates(model)) is gating
        assert touched(heads(model)) is not gating
        assert all(p.grad is None for p in model.backbone.parameters())


def test_gates_may_learn_from_images_that_nothing_else_saw(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    other = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = Batch(other, torch.arange(5) + 1, torch.arange(5) + 100)
    images = EveryImage(batch.ids, lambda: iter([batch]), lambda: iter([batch]))
    objective = joint(model, tmp_path, gates_see="validation")
    objective.prepare(images)
    found = objective(step())["gates"]
    there = joint(model, tmp_path)(step()._replace(images=other, targets=batch.labels))["gates"]
    torch.testing.assert_close(found, there)
    assert not torch.isclose(found, joint(model, tmp_path)(step())["gates"])
    torch.testing.assert_close(objective(step(2)), joint(model, tmp_path)(step(2)))  # heads' turn


def test_the_heads_turn_is_the_coupled_loss(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    batch = step(2)
    with torch.no_grad():
        said = model(batch.images)[:-1]
        losses = torch.stack([model.task.losses(s.logits, batch.targets) for s in said], dim=1)
        mass = exit_mass(torch.stack([s.gate for s in said], dim=1).sigmoid()).early
    released = joint(model, tmp_path, coupling="as_released")(batch)["loss"]
    torch.testing.assert_close(released, losses.mean())
    found = joint(model, tmp_path)(batch)["loss"]
    torch.testing.assert_close(found, coupled_loss(mass, losses, "detached"))


def test_short_epochs_still_flip_unless_as_released(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    turns = {}
    for counting in ("global", "per_epoch"):
        objective = joint(model, tmp_path, counting=counting)
        seen = []
        for number in range(6):  # epochs of two steps, turns of two
            seen.append("gates" in objective(step(number)))
            if number % 2:
                with torch.no_grad():
                    objective.hear(model(step().images), step().targets)
                objective.after_epoch([])
        turns[counting] = seen
    assert turns["global"] == [True, True, False, False, True, True]
    assert turns["per_epoch"] == [True] * 6


def test_balance_and_mixture_come_from_the_validation_split(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    objective = joint(model, tmp_path)
    assert isinstance(objective, GatesAndHeads)
    assert objective.positive.tolist() == [1, 1, 1]
    with torch.no_grad():
        said = model(step().images)
        best = best_exit(objective.paid([s.logits for s in said], step().targets))
        objective.hear(said, step().targets)
        objective.hear(said, step().targets)
    entry = objective.after_epoch([])
    counts = 2 * best.bincount(minlength=4).float()
    torch.testing.assert_close(objective.positive, class_balance(counts, "cumulative"))
    assert objective.counts.sum() == 0
    hazard = exit_mass(torch.stack([s.gate for s in said[:-1]], dim=1).sigmoid()).hazard
    exits = torch.tensor([next((k for k in range(3) if row[k] >= 0.5), 3) for row in hazard])
    right = [said[k].logits[n].argmax() == n for n, k in enumerate(exits.tolist())]
    assert entry["mixture"] == pytest.approx(100 * sum(map(int, right)) / 6, abs=1e-3)
    assert entry["mixture_cost"] == pytest.approx(objective.costs[exits].mean().item(), abs=1e-4)


def test_heads_without_gates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=r"exits\[0\] has none \(use layout jei_dnn"):
        joint(tiny_model("linear"), tmp_path)


# Warm-up


def warm(model: MultiExitModel, run: Path, **options: Any) -> WarmUp:
    recipe = JEIDNN(warmup=StageSettings(epochs=4), **options)
    objective = recipe.stages(model)[1].objective(model, run)
    assert isinstance(objective, WarmUp)
    return objective


def test_the_warm_up_loss_is_the_cards(tmp_path: Path) -> None:
    model, batch = tiny_model("jei_dnn"), step()
    losses = [model.task.loss(s.logits, batch.targets) for s in model(batch.images)]
    found = warm(model, tmp_path)(batch)["loss"]
    torch.testing.assert_close(found, 4 * losses[0] + 3 * losses[1] + 2 * losses[2] + losses[3])
    found.backward()
    assert touched(heads(model))
    assert not touched(gates(model))


def figures(*accuracies: float) -> list[dict[str, float]]:
    return [{"accuracy": value} for value in (*accuracies, 90.0)]


def test_heads_rest_at_their_best(tmp_path: Path) -> None:
    model = tiny_model("jei_dnn")
    objective = warm(model, tmp_path, patience=2)
    seen = []
    for values in ((50, 60, 70), (49, 61, 69), (48, 62, 71), (47, 63, 70)):
        with torch.no_grad():
            for k, head in enumerate(model.heads):
                for parameter in [] if objective.resting[k] else head.parameters():
                    parameter.add_(1.0)
        seen.append([head.state_dict()["head.norm.bias"].clone() for head in model.heads])
        objective.after_epoch(figures(*map(float, values)))
        if objective.resting[0]:
            assert torch.equal(model.heads[0].state_dict()["head.norm.bias"], seen[0][0])
    assert objective.resting.tolist() == [True, False, False]
    assert torch.equal(model.heads[1].state_dict()["head.norm.bias"], seen[3][1])  # still rising
    assert torch.equal(model.heads[2].state_dict()["head.norm.bias"], seen[2][2])  # at the cap
    assert not objective.finished
    model.zero_grad()
    objective(step())["loss"].backward()
    assert not touched(list(model.heads[0].parameters()))
    assert touched(list(model.heads[1].parameters()))


def test_a_fixed_warm_up_stops_no_head(tmp_path: Path) -> None:
    objective = warm(tiny_model("jei_dnn"), tmp_path, warm_up="fixed")
    for _ in range(5):
        objective.after_epoch(figures(50.0, 50.0, 50.0))
    assert not objective.resting.any()


# Runs


def small() -> MultiExitModel:
    return tiny_model("jei_dnn", image_size=8, patch_size=2, embed_dim=32, num_heads=2)


def brief(epochs: int, **options: Any) -> StageSettings:
    return StageSettings(epochs=epochs, batch_size=32, lr=5e-3, **options)


def trained(run: Path, model: MultiExitModel, **options: Any) -> dict[str, Tensor]:
    data = open_dataset("digits", limit={"train": 128, "validation": 64})
    options = {"warmup": brief(2), "joint": brief(2), "turns": {"every": 2}} | options
    fit(model, recipe="jei_dnn", data=data, run=run, progress=False, device="cpu", **options)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_cached_features_train_the_same_heads(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", small())
    cached = trained(tmp_path / "cached", small(), cache_gb=0.1)
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, atol=5e-3, rtol=5e-2)
    assert not list((tmp_path / "cached").glob("features*"))
    losses = [
        [round(e["loss"], 1) for e in read_metrics(tmp_path / r)] for r in ("plain", "cached")
    ]
    assert losses[0] == losses[1]


def test_a_stage_ends_when_every_head_rests(tmp_path: Path) -> None:
    trained(tmp_path, small(), warmup=brief(9, sched="constant").model_copy(update={"lr": 1e-12}))
    entries = read_metrics(tmp_path)
    assert [e["epoch"] for e in entries if e["stage"] == "warmup"] == [1, 2, 3]
    assert entries[2]["resting"] == 3
    assert [e["stage"] for e in entries[3:]] == ["joint", "joint"]
    assert all(0 < e["mixture_cost"] <= 1 for e in entries[3:])


@pytest.mark.parametrize(
    "taught",
    [{}, {"targets": "regret", "criterion": "error", "balance": "none"}],
    ids=["the paper's targets", "regret"],
)
def test_a_sweep_keeps_a_model_per_price(taught: dict[str, Any], tmp_path: Path) -> None:
    prices = {"tradeoffs": [0.0, 50.0], "following": 3, "cache_gb": 0.1}
    final = trained(
        tmp_path, small(), **prices, joint=brief(3, sched="constant"), turns={"every": 4} | taught
    )
    front = json.loads((tmp_path / "tradeoffs" / "front.json").read_text())
    assert [row["run"] for row in front] == ["0", "50"]
    stages = [entry["stage"] for entry in read_metrics(tmp_path)]
    assert stages == ["warmup"] * 2 + ["joint 0"] * 3 + ["joint 50"] * 3
    models = [MultiExitModel.from_pretrained(tmp_path / "tradeoffs" / n) for n in ("0", "50")]
    assert all(torch.equal(value, final[n]) for n, value in models[1].state_dict().items())
    assert front[0]["cost"] >= front[1]["cost"]
    data = open_dataset("digits", limit=100)
    held = []
    for model in models:
        records = offramp.collect(model, data, split="test", progress=False)
        held.append(records.signals["gate"][:, 0].sigmoid().mean())
    assert held[1] > held[0] + 0.01  # who pays for depth leaves early
    assert not list(tmp_path.glob("features*"))


def test_gates_may_learn_faster(tmp_path: Path) -> None:
    """The first steps are the gates' turn: with plain SGD they move in proportion to their rate."""
    joint = StageSettings(
        epochs=1, batch_size=128, lr=1e-3, optimizer="sgd", sched="constant", clip_grad=None
    )
    gate = "exits.0.gate.weight"
    moved = []
    for rate in (1.0, 10.0):
        model = small()
        before = model.state_dict()[gate].clone()
        after = trained(tmp_path / f"{rate}", model, warmup=brief(0), joint=joint, gate_rate=rate)
        moved.append(after[gate] - before)
    torch.testing.assert_close(moved[1], 10 * moved[0], rtol=1e-3, atol=1e-7)


def test_defaults_are_the_papers() -> None:
    recipe = RECIPES.get("jei_dnn")()
    assert (recipe.joint.optimizer, recipe.joint.lr, recipe.joint.min_lr) == (
        "momentum",
        0.01,
        2e-4,
    )
    assert (recipe.joint.weight_decay, recipe.joint.batch_size) == (5e-4, 64)
    assert (recipe.warmup.epochs, recipe.patience, recipe.turns.every) == (6, 2, 200)
    assert (recipe.turns.coupling, recipe.turns.balance) == ("detached", "cumulative")
    with pytest.raises(OfframpError, match="different numbers"):
        fit(small(), recipe="jei_dnn", data="digits", tradeoffs=[1, 1])
