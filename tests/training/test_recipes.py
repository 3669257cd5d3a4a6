"""The losses of the joint recipes and of LGViT equal the papers' formulas."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from families import SWIN, from_timm
from offramp.chains import State
from offramp.creation import create
from offramp.data import open_dataset
from offramp.errors import OfframpError
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.training import Objective, StageSettings, Step
from offramp.training.recipe import prediction_distillation
from offramp.training.recipes.joint import WeightedCrossEntropy, exit_weights
from offramp.training.recipes.lgvit import (
    Distillation,
    EndToEnd,
    SelfDistillation,
    feature_divergence,
    gram,
)
from tiny import tiny_model

BRIEF = StageSettings(epochs=1, batch_size=64, lr=2e-3)


def digits_model() -> MultiExitModel:
    return tiny_model(image_size=8, patch_size=2, embed_dim=32, num_heads=2)


def step(model: MultiExitModel, number: int = 1, batch: int = 4) -> Step:
    generator = torch.Generator().manual_seed(0)
    height, width = model.preprocessing.image_size
    return Step(
        torch.randn(batch, 3, height, width, generator=generator),
        torch.randint(0, 10, (batch,), generator=generator),
        torch.arange(batch),
        number,
    )


@pytest.mark.parametrize(("name", "stage"), [("frozen", "heads"), ("lgvit", "self_distillation")])
def test_frozen_stages_leave_the_backbone_alone(name: str, stage: str) -> None:
    model = digits_model()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    heads = {k: v.clone() for k, v in model.exits.named_parameters()}
    options = {stage: BRIEF}
    if name == "lgvit":
        options["end_to_end"] = StageSettings(epochs=0)
    fit(model, recipe=name, data=open_dataset("digits"), progress=False, device="cpu", **options)
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert any(not torch.equal(v, heads[k]) for k, v in model.exits.named_parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_finetune_leaves_the_heads_alone(tmp_path: Path) -> None:
    model = digits_model()
    heads = {k: v.clone() for k, v in model.exits.state_dict().items()}
    data = open_dataset("digits")
    fit(model, recipe="finetune", data=data, progress=False, finetune=BRIEF, run=tmp_path)
    assert all(torch.equal(v, heads[k]) for k, v in model.exits.state_dict().items())
    assert (tmp_path / "plain-backbone.safetensors").is_file()


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [("uniform", [1, 1, 1, 1]), ("linear", [1, 2, 3, 4]), ("final-heavy", [1, 1, 1, 2])],
)
def test_joint_weights(weighting: str, weights: list[int]) -> None:
    model = tiny_model()
    expected = [w / sum(weights) for w in weights]
    assert exit_weights(weighting, model.blocks) == pytest.approx(expected)
    batch = step(model)
    losses = [F.cross_entropy(said[0], batch.targets) for said in model(batch.images)]
    total = sum(w * loss for w, loss in zip(expected, losses, strict=True))
    torch.testing.assert_close(WeightedCrossEntropy(model, weighting)(batch)["loss"], total)


def test_pabee_weights_of_twelve_exits() -> None:
    weights = exit_weights("linear", range(1, 13))
    assert weights[0] == pytest.approx(0.01282, abs=1e-5)
    assert weights[-1] == pytest.approx(0.15385, abs=1e-5)


@pytest.mark.parametrize("strategy", ["normal", "weighted", "alternating", "alternating_weighted"])
def test_stage_one_alternates(strategy: str) -> None:
    model = tiny_model()
    objective = EndToEnd(model, strategy, 0.0, 2.0)
    even = step(model, number=0)
    objective(even)["loss"].backward()
    touched = any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.exits.parameters())
    assert touched is not strategy.startswith("alternating")
    expected = [1, 2, 3, 4] if strategy.endswith("weighted") else [1, 1, 1, 1]
    assert objective.weights == pytest.approx([w / sum(expected) for w in expected])
    odd = step(model, number=1)
    losses = [F.cross_entropy(said[0], odd.targets) for said in model(odd.images)]
    total = sum(w * loss for w, loss in zip(objective.weights, losses, strict=True))
    torch.testing.assert_close(objective(odd)["loss"], total)


def test_stage_one_weights_of_vit_base() -> None:
    weights = exit_weights("linear", [4, 5, 6, 7, 8, 9, 10, 11, 12])
    assert weights == pytest.approx([i / 72 for i in range(4, 13)])


def test_distillation_in_stage_one_mixes_losses() -> None:
    model, batch = tiny_model(), step(tiny_model())
    plain = EndToEnd(model, "normal", 0.0, 2.0)(batch)
    mixed = EndToEnd(model, "normal", 0.4, 2.0)(batch)
    said = [outputs[0] for outputs in model(batch.images)]
    distil = [prediction_distillation(z, said[-1], temperature=2.0) for z in said[:-1]]
    tasks = [F.cross_entropy(z, batch.targets) for z in said]
    expected = (sum(0.6 * t + 0.4 * d for t, d in zip(tasks, distil, strict=False)) + tasks[-1]) / 4
    torch.testing.assert_close(mixed["loss"], expected)
    torch.testing.assert_close(mixed["final"], plain["final"])


@given(st.integers(1, 6), st.integers(2, 9), st.floats(0.5, 4.0))
def test_prediction_distillation_vanishes_for_equal_logits(b: int, c: int, t: float) -> None:
    z = torch.randn(b, c, generator=torch.Generator().manual_seed(b * c))
    assert prediction_distillation(z, z, temperature=t).item() == pytest.approx(0, abs=1e-5)
    other = z.roll(1, 0) + torch.linspace(0, 1, c)
    batch = prediction_distillation(z, other, temperature=t)
    elements = prediction_distillation(z, other, temperature=t, reduction="elements")
    torch.testing.assert_close(batch, elements * c)


def test_kd_formula() -> None:
    z, teacher, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 2.0
    p, q = (teacher / t).softmax(1), (z / t).softmax(1)
    expected = t * t * (p * (p / q).log()).sum()
    torch.testing.assert_close(prediction_distillation(z, teacher, temperature=t), expected)


def test_feature_losses_vanish_for_equal_features() -> None:
    h = torch.randn(2, 9, 16)
    assert feature_divergence(h, h).item() == pytest.approx(0, abs=1e-5)
    assert feature_divergence(h.roll(1, 1), h) > 0
    assert gram(h).shape == (2, 16, 16)
    torch.testing.assert_close(gram(h[:, torch.randperm(9)]), gram(h), atol=1e-4, rtol=1e-4)


class _Recorded(SelfDistillation):
    """Stage 2 on features of our choice."""

    def parts(self, features: list[torch.Tensor], patches: torch.Tensor) -> tuple:
        heads = list(self.model.heads)
        return self._heterogeneous(heads, features, patches), self._homogeneous(features)


def test_stage_two_terms_follow_the_card() -> None:
    """Eight heads: the backbone teaches heads 0, 3, 4, 7; heads 3 and 7 teach their kind."""
    exits = [{"after": i + 1, "head": "lph"} for i in range(4)] + [
        {"after": i + 5, "head": "gah", "options": {"ratio": r}} for i, r in enumerate((2, 2, 3, 3))
    ]
    model = tiny_model(exits, depth=9)
    objective = _Recorded(model, Distillation())
    assert objective.groups == [[0, 1, 2, 3], [4, 5, 6, 7]]
    patches = torch.randn(2, 16, 48)
    aligned = [head.align(patches) for head in model.heads]
    hete, homo = objective.parts(aligned, patches)
    assert hete.item() == pytest.approx(0, abs=1e-4)
    others = [f + torch.randn_like(f) for f in aligned]
    expected = sum(feature_divergence(others[k], aligned[k]) for k in (0, 3, 4, 7))
    hete, homo = objective.parts(others, patches)
    torch.testing.assert_close(hete, expected)
    expected = sum(F.mse_loss(others[k], others[3]) for k in (0, 1, 2))
    expected += sum(F.mse_loss(gram(others[k]), gram(others[7])) for k in (4, 5, 6))
    torch.testing.assert_close(homo, expected)


def pyramid(exits: list[dict]) -> MultiExitModel:
    """Swin: blocks 1–2 read 16×16×16, 3–5 8×8×32, 6–9 4×4×64, 10–11 2×2×128."""
    torch.manual_seed(0)
    backbone = from_timm("swin_tiny_patch4_window7_224", **(SWIN | {"depths": (2, 3, 4, 2)}))()
    return create(backbone, exits=exits).eval()


def test_stage_two_compares_features_of_one_shape() -> None:
    """In a pyramid the last block teaches its own stage, deeper heads their kind in their stage."""
    kinds = ["lph", "lph", "lph", "lph", "lph", "gah", "lph", "gah", "gah", "gah"]
    exits = [{"after": i + 1, "head": head} for i, head in enumerate(kinds)]
    model = pyramid(exits)
    objective = _Recorded(model, Distillation())
    assert objective.groups == [[0, 1], [2, 3, 4], [5, 7, 8], [6], [9]]
    assert objective.taught == [9]
    shapes = [(256, 16)] * 2 + [(64, 32)] * 3 + [(4, 64), (16, 64), (4, 64), (4, 64), (1, 128)]
    features = [torch.randn(2, *shape) for shape in shapes]
    patches = torch.randn(2, 4, 128)
    hete, homo = objective.parts(features, patches)
    torch.testing.assert_close(hete, feature_divergence(features[9], patches[:, :1]))
    expected = F.mse_loss(features[0], features[1])
    expected += sum(F.mse_loss(features[k], features[4]) for k in (2, 3))
    expected += sum(F.mse_loss(gram(features[k]), gram(features[8])) for k in (5, 7))
    torch.testing.assert_close(homo, expected)
    batch = step(model)
    values = SelfDistillation(model, Distillation())(batch)
    values["loss"].backward()
    assert all(p.grad is not None for p in model.exits.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_stage_two_without_comparable_features_learns_from_predictions() -> None:
    model = pyramid([{"after": 2, "head": "lph"}, {"after": 5, "head": "gah"}])
    values = SelfDistillation(model, Distillation())(step(model))
    assert values["hete"] == values["homo"] == 0
    torch.testing.assert_close(values["loss"], 0.7 * values["task"] + 0.3 * values["prediction"])


@pytest.mark.parametrize("detach", [True, False])
def test_stage_two_gradients_stay_in_the_heads(detach: bool) -> None:
    model = tiny_model()
    options = Distillation(detach_teacher=detach, alpha=0.0, hete=0.0, homo=1.0)
    objective = SelfDistillation(model, options)
    values = objective(step(model))
    values["homo"].backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    teacher = [p.grad for p in model.heads[1].parameters() if p.grad is not None]
    assert bool(teacher) is not detach


def test_stage_two_loss_is_the_weighted_sum() -> None:
    model, options = tiny_model(), Distillation(alpha=0.25, hete=0.5, homo=2.0)
    v = SelfDistillation(model, options)(step(model))
    expected = 0.75 * v["task"] + 0.25 * v["prediction"] + 0.5 * v["hete"] + 2.0 * v["homo"]
    torch.testing.assert_close(v["loss"], expected)


def test_released_teacher_skips_the_final_norm() -> None:
    model = tiny_model()
    torch.nn.init.normal_(model.backbone.norm.weight, mean=2.0)
    fixed = SelfDistillation(model, Distillation())(step(model))
    released = SelfDistillation(model, Distillation(teacher_norm=False))(step(model))
    assert not torch.allclose(fixed["prediction"], released["prediction"])
    torch.testing.assert_close(fixed["task"], released["task"])


def test_lgvit_refuses_heads_without_features() -> None:
    with pytest.raises(OfframpError, match=r"exits\[0\] is a LinearExit"):
        SelfDistillation(tiny_model("linear"), Distillation())


class _Exploding(Objective):
    def forward(self, step: Step) -> dict[str, torch.Tensor]:
        return {"loss": self.model.chain(step.images).sum() * float("nan")}


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    from offramp.training import Recipe, Stage

    class Bad(Recipe):
        def stages(self, model: MultiExitModel) -> list[Stage]:
            return [Stage("bad", BRIEF, lambda model, run: _Exploding(model))]

    with pytest.raises(OfframpError, match=r"stage bad: the loss is nan at step 0; lower lr"):
        fit(digits_model(), recipe=Bad(), data=open_dataset("digits"), progress=False, run=tmp_path)


def test_walk_gives_the_state_before_every_exit() -> None:
    model = tiny_model()
    images = torch.randn(2, 3, 32, 32)
    states: list[State] = list(model.walk(images))
    assert len(states) == model.num_exits
    torch.testing.assert_close(model.chain.finish(*states[-1]), model.backbone(images))
