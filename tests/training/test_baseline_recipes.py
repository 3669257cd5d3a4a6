"""The baselines' losses, weights and gradients equal the papers' formulas."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains import State, Tokens, TokenSpec
from offramp.chains.chain import Chain
from offramp.chains.state import Schema
from offramp.errors import OfframpError
from offramp.exits import Outputs
from offramp.model import MultiExitModel
from offramp.segments import Segment
from offramp.tasks import Target, task_named
from offramp.training import RECIPES, StageSettings, Step
from offramp.training.certainty import certainty_loss
from offramp.training.distillation import Teaching, taught
from offramp.training.equilibrium import balanced_answers
from offramp.training.recipe import prediction_distillation
from offramp.training.recipes.berxit import AlternatingCrossEntropy
from offramp.training.recipes.boosted import BoostedCrossEntropy, boosted_sums
from offramp.training.recipes.branchynet import falling_weights
from offramp.training.recipes.gradient_equilibrium import BalancedTeaching
from offramp.training.recipes.layer_wise import OneExit
from offramp.training.recipes.sdn import RampedCrossEntropy, ramp
from offramp.training.recipes.self_distillation import TaughtCrossEntropy
from offramp.training.trained import backbone, below, classifier, everything, exits, layers, modes
from tiny import tiny_model


def step(number: int = 1, epoch: int = 0) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    targets = torch.randint(0, 10, (4,), generator=generator)
    return Step(images, targets, torch.arange(4), number, epoch)


def losses_of(model: MultiExitModel, batch: Step) -> list[Tensor]:
    return [F.cross_entropy(said[0], batch.targets) for said in model(batch.images)]


# Weights


def test_sdn_weights_grow_to_their_share() -> None:
    shares = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
    assert ramp(shares, 0, 100) == pytest.approx([0.01] * 6)
    assert ramp(shares, 50, 100) == pytest.approx([0.085, 0.16, 0.235, 0.31, 0.385, 0.46])
    assert ramp(shares, 100, 100) == pytest.approx(shares)
    model = tiny_model("linear")
    objective = RampedCrossEntropy(model, (0.25, 0.5, 0.75), 10)
    batch = step(epoch=5)
    weights = [0.135, 0.26, 0.385, 1.0]
    expected = sum(w * x for w, x in zip(weights, losses_of(model, batch), strict=True))
    torch.testing.assert_close(objective(batch)["loss"], expected)
    recipe = RECIPES.get("sdn")()
    assert recipe.objective(model, None).shares == [0.25, 0.5, 0.75]
    with pytest.raises(OfframpError, match=r"recipe\.shares names 1 exits, but the model has 3"):
        RECIPES.get("sdn")(shares=[0.5]).objective(model, None)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("msdnet", [1, 1, 1, 1]),
        ("pabee", [0.1, 0.2, 0.3, 0.4]),
        ("branchynet", [1, 23 / 30, 16 / 30, 0.3]),
        ("end_to_end", [0.2, 0.2, 0.2, 0.4]),
        ("mixed", [0.25] * 4),
    ],
)
def test_joint_recipes_differ_by_their_weights(name: str, weights: list[float]) -> None:
    model, batch = tiny_model("linear"), step()
    values = RECIPES.get(name)().objective(model, None)(batch)
    expected = sum(w * x for w, x in zip(weights, losses_of(model, batch), strict=True))
    torch.testing.assert_close(values["loss"], torch.as_tensor(expected))


def test_branchynets_weights() -> None:
    assert falling_weights(2, 1.0, 0.3) == pytest.approx([1.0, 0.3])
    assert falling_weights(3, 1.0, 0.4) == pytest.approx([1.0, 0.7, 0.4])


def test_berxit_alternates() -> None:
    model = tiny_model("linear")
    objective = AlternatingCrossEntropy(model, [1.0] * 4)
    losses = losses_of(model, step())
    torch.testing.assert_close(objective(step(number=0))["loss"], losses[-1])
    torch.testing.assert_close(objective(step(number=1))["loss"], sum(losses))
    weighted = RECIPES.get("berxit")(strategy="weighted").objective(model, None)
    expected = sum((k + 1) / 10 * loss for k, loss in enumerate(losses))
    torch.testing.assert_close(weighted(step(number=0))["loss"], expected)


# Learning to exit


class Sure(NamedTuple):
    logits: Tensor
    certainty: Tensor


def test_certainty_learns_whether_the_answer_is_right() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    sure = torch.tensor([0.9, 0.4], requires_grad=True)
    task, targets = task_named("classification"), torch.tensor([0, 0])
    loss = certainty_loss(task, [Outputs(logits), Sure(logits, sure)], targets)
    assert loss.item() == pytest.approx((0.1**2 + 0.4**2) / 2)
    loss.backward()
    assert logits.grad is None
    soft = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    assert certainty_loss(task, [Sure(logits, sure)], soft).item() == pytest.approx(loss.item())
    assert certainty_loss(task, [Outputs(logits)], targets) is None


def test_certainty_of_numbers_falls_with_the_error() -> None:
    task = task_named("regression", Target(mean=10.0, std=2.0))
    said = Sure(torch.tensor([[0.0], [1.5]]), torch.tensor([1.0, 0.0]))
    loss = certainty_loss(task, [said], torch.tensor([10.0, 12.0]))  # y = 0 and 1 in units of std
    right = 1 - torch.tensor(0.5).tanh()
    torch.testing.assert_close(loss, (right**2) / 2)


def test_heads_with_certainty_are_trained_by_every_joint_recipe() -> None:
    model = tiny_model("berxit")
    values = RECIPES.get("joint")().objective(model, None)(step())
    assert values["certainty"] > 0
    values["certainty"].backward()
    assert all(head.judge[1].weight.grad.abs().sum() > 0 for head in model.heads)


# Self-distillation


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [("last", [[3], [3], [3]]), ("next", [[1], [2], [3]]), ("later", [[1, 2, 3], [2, 3], [3]])],
)
def test_who_teaches_whom(teacher: str, expected: list[list[int]]) -> None:
    teaching = Teaching(teacher=teacher, share=0.3, temperature=2.0)
    assert [list(teaching.teachers(k, 4)) for k in range(3)] == expected
    said = [torch.randn(5, 7, requires_grad=True) for _ in range(4)]
    losses = taught([torch.tensor(1.0)] * 3, said, teaching)
    for k, teachers in enumerate(expected):
        lessons = [prediction_distillation(said[k], said[t], temperature=2.0) for t in teachers]
        torch.testing.assert_close(losses[k], 0.7 + 0.3 * sum(lessons) / len(lessons))
    losses[0].backward()
    assert said[0].grad is not None
    assert all(logits.grad is None for logits in said[1:])


def test_self_distillation_leaves_the_final_exit_to_labels() -> None:
    model, batch = tiny_model("linear"), step()
    teaching = Teaching()
    values = TaughtCrossEntropy(model, "uniform", teaching)(batch)
    *early, final = losses_of(model, batch)
    expected = [*taught(early, [out[0] for out in model(batch.images)], teaching), final]
    torch.testing.assert_close(values["loss"], torch.stack(expected).mean())
    torch.testing.assert_close(values["final"], final)


# Gradient equilibrium and boosting


class _Identity(nn.Module):
    def forward(self, x: Tensor) -> State:
        return (x + 0,)


class _Same(Chain):
    """Blocks that do nothing; the answer is the state."""

    schema = Schema(backbone=("x",))

    def __init__(self) -> None:
        super().__init__(nn.Module(), [_Identity() for _ in range(4)])

    def embed(self, images: Tensor) -> State:
        return (images,)

    def finish(self, *state: Tensor) -> Tensor:
        return state[0]

    def tokens(self, state: State, step: int) -> Tokens:
        return Tokens(state[0].unsqueeze(1), None, state[0].unsqueeze(1))

    def token_spec(self, step: int) -> TokenSpec:
        return TokenSpec(1, None)


class _Says(nn.Module):
    def forward(self, tokens: Tokens, carry: State = ()) -> tuple[Outputs, State]:
        return Outputs(tokens.patches[:, 0]), carry


class _FourExits:
    """As much of a model as equilibrium walks, keeping what each segment hands on."""

    def __init__(self) -> None:
        self.chain, self.reached = _Same(), []

    def segments(self) -> list[Segment]:
        made = [Segment(self.chain, k, k + 1, k, _Says() if k < 3 else None) for k in range(4)]
        for segment in made:
            body = segment.body

            def kept(*inputs: Tensor, body=body) -> State:
                state = body(*inputs)
                state[0].retain_grad()
                self.reached.append(state[0])
                return state

            segment.body = kept
        return made


def test_gradient_equilibrium_gives_blocks_the_mean() -> None:
    """Identity blocks, gradients 1, 2, 3, 4 at the exits: 2.5, 3, 3.5, 4 at the blocks."""
    model = _FourExits()
    image = torch.zeros(1, 1, requires_grad=True)
    said = balanced_answers(model, image)
    sum((k + 1) * outputs[0].sum() for k, outputs in enumerate(said)).backward()
    # what leaves a block is scaled first: the block itself gets that
    blocks = [x.grad.item() for x in model.reached]
    assert blocks == pytest.approx([2.5, 3.0, 3.5, 4.0])
    assert image.grad.item() == pytest.approx(2.5)


def test_gradient_equilibrium_changes_gradients_of_shared_blocks_only() -> None:
    model, batch = tiny_model("linear"), step()
    said = balanced_answers(model, batch.images)
    for ours, plain in zip(said, model(batch.images), strict=True):
        assert torch.equal(ours[0], plain[0])

    def gradients(outputs: list) -> dict[str, Tensor]:
        model.zero_grad()
        sum(F.cross_entropy(out[0], batch.targets) for out in outputs).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    balanced, summed = gradients(said), gradients(model(batch.images))
    for name, gradient in summed.items():
        if name.startswith(("exits", "chain.backbone.head", "chain.backbone.norm")):
            torch.testing.assert_close(balanced[name], gradient)
        if name.startswith("chain.backbone.blocks.3"):  # one exit above: nothing to share
            torch.testing.assert_close(balanced[name], gradient)
        if name.startswith("chain.backbone.blocks.2"):  # two exits above
            torch.testing.assert_close(balanced[name], gradient / 2)


def test_imta_second_stage_is_taught_by_the_last_exit() -> None:
    model, batch = tiny_model("linear"), step()
    teaching = Teaching(share=0.1, temperature=1.0)
    values = BalancedTeaching(model, [1.0] * 4, teaching)(batch)
    said = [out[0] for out in model(batch.images)]
    *early, final = losses_of(model, batch)
    lessons = [prediction_distillation(z, said[-1], temperature=1.0) for z in said[:-1]]
    expected = final + sum(0.9 * a + 0.1 * b for a, b in zip(early, lessons, strict=True))
    torch.testing.assert_close(values["loss"], expected)


def test_boosted_exits_add_up() -> None:
    said = [torch.tensor([x]) for x in ([1.0, 0.0], [0.5, 0.25], [0.0, 1.0])]
    sums = boosted_sums(said, 0.5)
    assert sums[1].tolist() == [[1.0, 0.25]]
    assert sums[2].tolist() == [[0.5, 1.125]]


def test_boosted_exits_do_not_correct_what_came_before() -> None:
    model, batch = tiny_model("linear"), step()
    objective = BoostedCrossEntropy(model, 0.5)
    losses = objective.losses(model(batch.images), batch)
    losses[2].backward()
    assert all(p.grad is None for k in (0, 1) for p in model.exits[k].parameters())
    assert any(p.grad is not None for p in model.exits[2].parameters())


def test_boosted_policy_answers_with_the_trained_sums() -> None:
    from offramp.policies.boosted import Boosted

    said = [torch.randn(3, 4) for _ in range(3)]
    policy = Boosted([1.0, 1.0, 0.0], num_classes=4, keep=0.5)
    memory = policy.start(3)
    for k, (logits, expected) in enumerate(zip(said, boosted_sums(said, 0.5), strict=True)):
        _, answer, memory = policy.follow(k, Outputs(logits), memory)
        torch.testing.assert_close(answer, expected)


# What a stage trains


def test_layers_are_a_partition_of_the_model() -> None:
    model = tiny_model("linear")
    parts = [layers(model, k) for k in range(model.num_exits)]
    found = [id(parameter) for part in parts for parameter in part]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in everything(model)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    first, *middle, last = [{names[id(parameter)] for parameter in part} for part in parts]
    assert {"chain.backbone.cls_token", "chain.backbone.pos_embed"} <= first
    assert all(
        name.startswith((f"chain.backbone.blocks.{k}.", f"exits.{k}."))
        for k, part in enumerate(middle, 1)
        for name in part
    )
    assert "chain.backbone.head.weight" in last
    assert not any(name.startswith("exits") for name in last)


def test_layer_wise_runs_no_further_than_its_exit() -> None:
    model, batch = tiny_model("linear"), step()
    stages = RECIPES.get("layer_wise")().stages(model)
    assert [stage.name for stage in stages] == ["block 1", "block 2", "block 3", "final"]
    for k, stage in enumerate(stages):
        values = stage.objective(model, None)(batch)
        torch.testing.assert_close(values["loss"], losses_of(model, batch)[k])
    model.zero_grad()
    OneExit(model, None, k=1)(batch)["loss"].backward()
    assert all(p.grad is None for p in model.backbone.blocks[2:].parameters())


def test_the_trunk_is_all_but_norm_and_classifier() -> None:
    model = tiny_model("linear")
    own = {id(p) for p in [*model.backbone.norm.parameters(), *model.backbone.head.parameters()]}
    assert {id(parameter) for parameter in classifier(model)} == own
    assert below(model, len(model.chain)) == {id(p) for p in backbone(model)} - own


def test_looking_for_layers_leaves_the_model_as_it_was() -> None:
    model = tiny_model("linear").train()
    model.exits.requires_grad_(False)
    layers(model, 1)
    assert model.training
    assert model.backbone.blocks[0].training
    assert all(p.requires_grad for p in model.backbone.parameters())
    assert not any(p.requires_grad for p in model.exits.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_modes_follow_what_is_trained() -> None:
    model = tiny_model("lgvit", proj_drop_rate=0.1)
    training = dict(modes(model, exits(model)))
    assert all(training[m] for m in model.exits.modules())
    assert not any(training[m] for m in model.backbone.modules())
    training = dict(modes(model, layers(model, 1)))
    assert all(training[m] for m in model.backbone.blocks[1].modules())
    assert not any(training[m] for m in model.backbone.blocks[0].modules())
    assert not training[model.backbone.pos_drop]
    assert all(mode for _, mode in modes(model, everything(model)))


def test_two_stages_of_deebert() -> None:
    brief = StageSettings(epochs=1)
    stages = RECIPES.get("deebert")(finetune=brief, heads=brief).stages(tiny_model("pooler"))
    assert [stage.name for stage in stages] == ["finetune", "heads"]
    assert stages[0].trains is backbone
