"""Frozen backbones: cached features, survivors, distillation; the backbone stays what it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from families import SWIN, from_timm
from offramp.creation import create
from offramp.data import Batch, open_dataset
from offramp.data.images import ArrayImages
from offramp.errors import OfframpError
from offramp.exits import EXITS
from offramp.fitting import fit
from offramp.model import MultiExitModel
from offramp.training import StageSettings, Step
from offramp.training.distillation import Teaching
from offramp.training.every_image import EveryImage
from offramp.training.feature_cache import FeatureCache
from offramp.training.metrics import read_metrics
from offramp.training.recipe import prediction_distillation
from offramp.training.recipes.copycat import Imitation
from offramp.training.recipes.frozen import HeadsCrossEntropy, Survivors
from tiny import tiny_model

BRIEF = StageSettings(epochs=1, batch_size=32, lr=2e-3)


def step(batch: int = 4) -> Step:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    targets = torch.randint(0, 10, (batch,), generator=generator)
    return Step(images, targets, torch.arange(batch), 0)


def seen(step: Step) -> Any:
    """The step's samples as one pass over the train split."""
    batch = Batch(step.images, step.targets, step.ids)
    return EveryImage(step.ids, lambda: iter([batch]), lambda: iter([]))


def digits_model(exits: Any = "linear") -> MultiExitModel:
    return tiny_model(exits, image_size=8, patch_size=2, embed_dim=32, num_heads=2)


def heads_losses(model: MultiExitModel, batch: Step) -> list[Tensor]:
    return [F.cross_entropy(said[0], batch.targets) for said in model(batch.images)[:-1]]


# Cached features


@pytest.mark.parametrize("exits", ["linear", "lgvit", "ztw", "berxit"])
def test_cached_features_give_the_same_losses(exits: str, tmp_path: Path) -> None:
    model, batch = tiny_model(exits), step()
    cached = HeadsCrossEntropy(model, FeatureCache(tmp_path / "cache", 0.01))
    assert cached.needs_images
    cached.prepare(seen(batch))
    assert not cached.needs_images
    blind = batch._replace(images=torch.empty(4, 0))
    expected = HeadsCrossEntropy(model)(batch)
    found = cached(blind)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=2e-3)
    assert all(p.grad is None for p in model.backbone.parameters())
    cached.close()
    assert not (tmp_path / "cache").exists()


def test_heads_on_pooled_vectors_keep_pooled_vectors(tmp_path: Path) -> None:
    """Class token and mean patch per head, and the final logits: kilobytes per image."""
    model, batch = tiny_model("linear"), step()
    objective = HeadsCrossEntropy(model, FeatureCache(tmp_path, 0.01))
    objective.prepare(seen(batch))
    sizes = [store[0].size for store in objective.cache.stores]
    assert sizes == [48, 48] * 3 + [10]
    whole = HeadsCrossEntropy(tiny_model("lgvit"), FeatureCache(tmp_path / "whole", 0.01))
    whole.prepare(seen(batch))
    assert [store[0].size for store in whole.cache.stores] == [16 * 48, 48] * 3 + [10]


SUMMARY_HEADS = [name for name in EXITS.names() if EXITS.get(name).summary]


@pytest.mark.parametrize("name", SUMMARY_HEADS)
def test_heads_that_want_a_summary_read_no_more(name: str) -> None:
    model = tiny_model(name)
    state = next(iter(model.walk(step().images)))
    tokens = model.chain.tokens(state, model.positions[0] - 1)
    full, _ = model.heads[0](tokens)
    short, _ = model.heads[0](tokens.summary)
    for ours, plain in zip(short, full, strict=True):
        torch.testing.assert_close(ours, plain)


def test_features_without_class_tokens_are_cached(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = from_timm("swin_tiny_patch4_window7_224", **SWIN)()
    model = create(backbone, exits="linear", at=[1, 3]).eval()
    height = model.preprocessing.image_size[0]
    batch = step()._replace(images=torch.randn(4, 3, height, height))
    cached = HeadsCrossEntropy(model, FeatureCache(tmp_path / "cache", 0.01))
    cached.prepare(seen(batch))
    expected = HeadsCrossEntropy(model)(batch)["loss"]
    torch.testing.assert_close(
        cached(batch._replace(images=torch.empty(4, 0)))["loss"], expected, atol=2e-3, rtol=2e-3
    )
    cached.close()


def test_samples_without_room_are_computed_again(tmp_path: Path) -> None:
    model, batch = tiny_model("linear"), step(6)
    bytes_each = 2 * (3 * 2 * 48 + 10)
    cached = HeadsCrossEntropy(model, FeatureCache(tmp_path, 4 * bytes_each / 1e9))
    cached.prepare(seen(batch))
    assert cached.needs_images
    assert cached.cache.holds(torch.arange(6)).tolist() == [True] * 4 + [False] * 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4 * bytes_each
    expected = HeadsCrossEntropy(model)(batch)["loss"]
    torch.testing.assert_close(cached(batch)["loss"], expected, atol=2e-3, rtol=2e-3)
    swapped = batch._replace(images=batch.images[[3, 2, 1, 0, 4, 5]])  # the kept are not looked at
    torch.testing.assert_close(cached(swapped)["loss"], cached(batch)["loss"])
    with pytest.raises(OfframpError, match="above 0"):
        FeatureCache(tmp_path, 0)


def test_features_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1e-3)
    with pytest.raises(OfframpError, match=r"features reach 1e\+05, .* set cache_gb: null"):
        cache.add(torch.arange(1), [torch.full((1, 3), 1e5)])


def test_feature_cache_refuses_images_that_change() -> None:
    for data, augment, reason in (
        ("digits", {"hflip": True}, "recipe.heads.augment must be off"),
        ("digits-grid", {"label_smoothing": 0.1}, "composes new images in every epoch"),
    ):
        model = tiny_model(image_size=open_dataset(data).split("test")[0][0].size[0], patch_size=4)
        heads = {"epochs": 1, "augment": augment}
        with pytest.raises(OfframpError, match=reason):
            fit(model, recipe="frozen", data=data, progress=False, cache_gb=1.0, heads=heads)


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone sees each image of training and validation once, whatever the epochs."""
    data = open_dataset("digits", limit={"train": 96, "validation": 32})
    opened: list[int] = []
    backbone_saw: list[int] = []
    model = digits_model()
    pixels = ArrayImages.pixels

    def counted(self: ArrayImages, rows: Any) -> Any:
        opened.append(len(rows))
        return pixels(self, rows)

    monkeypatch.setattr(ArrayImages, "pixels", counted)
    model.backbone.patch_embed.register_forward_hook(
        lambda module, inputs, output: backbone_saw.append(len(inputs[0]))
    )
    heads = {"epochs": 5, "batch_size": 32, "lr": 1e-3}
    fit(model, recipe="frozen", data=data, progress=False, run=tmp_path, cache_gb=0.1, heads=heads)
    assert sorted(opened) == [32, 96]  # validation and train, each decoded once
    assert sum(backbone_saw) == 96 + 32
    assert not list(tmp_path.glob("features*"))
    again = digits_model()
    fit(again, recipe="frozen", data=data, progress=False, run=tmp_path / "live", heads=heads)
    cached, live = read_metrics(tmp_path), read_metrics(tmp_path / "live")
    for ours, theirs in zip(cached, live, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        for name, accuracy in theirs["validation"].items():
            assert ours["validation"][name] == pytest.approx(accuracy, abs=100 / 32 + 1e-6)


def test_features_are_shared_by_runs_on_one_backbone_and_no_other(tmp_path: Path) -> None:
    data = open_dataset("digits", limit={"train": 96, "validation": 32})
    heads = {"epochs": 2, "batch_size": 32, "lr": 1e-3}
    seen_by_backbone: list[int] = []

    def train(folder: str, exits: str = "linear", seed: int = 0, **more: Any) -> MultiExitModel:
        model = digits_model(exits)
        model.backbone.patch_embed.register_forward_hook(
            lambda module, inputs, output: seen_by_backbone.append(len(inputs[0]))
        )
        if seed:
            with torch.no_grad():
                next(model.backbone.parameters()).add_(0.1)
        seen_by_backbone.clear()
        options = {"cache_gb": 0.1, "cache_folder": tmp_path / "features", "heads": heads, **more}
        run = tmp_path / folder
        return fit(model, recipe="frozen", data=data, progress=False, run=run, **options)

    first = train("first")
    assert sum(seen_by_backbone) == 8 + 96 + 32
    again = train("again")  # eight images tell that they are there
    assert sum(seen_by_backbone) == 8
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    other_heads = train("pooled", "pooler")
    assert sum(seen_by_backbone) == 8
    assert other_heads.exit_names == first.exit_names
    assert len(list((tmp_path / "features").iterdir())) == 1
    train("other batches", heads=heads | {"batch_size": 48})
    assert sum(seen_by_backbone) == 8
    train("maps", "lgvit")  # whole token maps
    assert sum(seen_by_backbone) == 8 + 96 + 32
    train("other backbone", seed=1)
    assert sum(seen_by_backbone) == 8 + 96 + 32
    assert len(list((tmp_path / "features").iterdir())) == 3
    train("small", cache_gb=1e-5, cache_folder=tmp_path / "none")  # not all fit: nothing is kept
    assert not list((tmp_path / "none").iterdir())


# The backbone and its answer


@pytest.mark.parametrize("cache_gb", [None, 0.1])
def test_a_frozen_backbone_is_untouched_and_its_answer_the_same_bits(
    cache_gb: float | None,
) -> None:
    model = tiny_model(
        "linear", image_size=8, patch_size=2, embed_dim=32, num_heads=2, proj_drop_rate=0.3
    )
    images = torch.randn(5, 3, 8, 8)
    before, answer = {k: v.clone() for k, v in model.backbone.state_dict().items()}, model(images)
    fit(
        model,
        recipe="frozen",
        data=open_dataset("digits", limit=64),
        progress=False,
        cache_gb=cache_gb,
        heads=BRIEF,
        teaching=Teaching(),
        survivors=Survivors(),
    )
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert torch.equal(model(images)[-1][0], answer[-1][0])
    assert torch.equal(model.backbone(images), answer[-1][0])
    assert not torch.equal(model(images)[0][0], answer[0][0])


def test_another_task_trains_a_classifier_on_the_same_trunk(tmp_path: Path) -> None:
    first = digits_model()
    first.save_pretrained(tmp_path / "first")
    second = create(
        "deit_tiny_patch16_224",
        exits="linear",
        at=[1, 2],
        num_classes=10,
        image_size=8,
        backbone_args=first.config.backbone_args | {"img_size": 8},
        pretrained=str(tmp_path / "first"),
    )
    torch.nn.init.zeros_(second.backbone.head.weight)
    data = open_dataset("digits", limit=64)
    fit(
        second,
        recipe="frozen",
        data=data,
        progress=False,
        heads=BRIEF,
        cache_gb=0.1,
        classifier=True,
        run=tmp_path / "run",
    )
    ours, theirs = second.backbone.state_dict(), first.backbone.state_dict()
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert moved == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert "final" in read_metrics(tmp_path / "run")[-1]


# Losses


def test_survivors_are_those_no_earlier_head_kept() -> None:
    sure, unsure = torch.tensor([5.0, 0.0]), torch.tensor([0.1, 0.0])
    said = [
        torch.stack([sure, unsure, unsure]),
        torch.stack([unsure, sure, unsure]),
        torch.stack([unsure] * 3),
    ]
    survivors = Survivors(threshold=0.8, floor=0.0)
    weights = [w.tolist() for w in survivors.weights(said)]
    assert weights == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    floored = [w.tolist() for w in Survivors(threshold=0.8, floor=0.25).weights(said)]
    assert floored == [[1, 1, 1], [0.25, 1, 1], [0.25, 0.25, 1]]
    soft = Survivors(threshold=0.8, softness=0.1, floor=0.0).weights(said)
    kept = [torch.sigmoid((logits.softmax(-1).amax(-1) - 0.8) / 0.1) for logits in said]
    torch.testing.assert_close(soft[1], 1 - kept[0])
    torch.testing.assert_close(soft[2], (1 - kept[0]) * (1 - kept[1]))


def test_survivor_weights_are_in_the_loss() -> None:
    model, batch = tiny_model("linear"), step(8)
    said = [out[0] for out in model(batch.images)[:-1]]
    middle = said[0].softmax(-1).amax(-1).median().item()
    survivors = Survivors(threshold=middle, floor=0.1)
    objective = HeadsCrossEntropy(model, survivors=survivors)
    expected = torch.zeros(())
    for logits, weights in zip(said, survivors.weights(said), strict=True):
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        expected = expected + (weights * losses).sum() / weights.sum()
    values = objective(batch)
    torch.testing.assert_close(values["loss"], expected)
    assert not torch.allclose(expected, sum(heads_losses(model, batch)))
    model.zero_grad()
    never = HeadsCrossEntropy(model, survivors=Survivors(threshold=1.0))
    torch.testing.assert_close(never(batch)["loss"], sum(heads_losses(model, batch)))


def test_heads_learn_from_the_final_softmax(tmp_path: Path) -> None:
    model, batch = tiny_model("linear"), step()
    said = [out[0] for out in model(batch.images)]
    teaching = Teaching(share=0.4, temperature=3.0)
    expected = sum(
        0.6 * F.cross_entropy(z, batch.targets)
        + 0.4 * prediction_distillation(z, said[-1], temperature=3.0)
        for z in said[:-1]
    )
    plain = HeadsCrossEntropy(model, teaching=teaching)
    torch.testing.assert_close(plain(batch)["loss"], expected)
    cached = HeadsCrossEntropy(model, FeatureCache(tmp_path, 0.01), teaching=teaching)
    cached.prepare(seen(batch))
    blind = batch._replace(images=torch.empty(4, 0))
    torch.testing.assert_close(cached(blind)["loss"], expected, atol=2e-3, rtol=2e-3)


def test_copycat_imitates_the_backbone() -> None:
    model, batch = tiny_model("linear"), step()
    said = [out[0] for out in model(batch.images)]
    wrong = batch._replace(targets=(said[-1].argmax(-1) + 1) % 10)
    hard = sum(F.cross_entropy(z, said[-1].argmax(-1)) for z in said[:-1])
    torch.testing.assert_close(Imitation(model, None, "hard")(wrong)["loss"], hard)
    soft = sum(F.cross_entropy(z, said[-1].softmax(-1)) for z in said[:-1])
    torch.testing.assert_close(Imitation(model, None, "soft")(wrong)["loss"], soft)


def test_separate_heads_do_not_touch_one_another() -> None:
    """Classifier-wise: a head trained beside others equals one trained alone."""
    data = open_dataset("digits", limit={"train": 64, "validation": 32})
    heads = {"epochs": 2, "batch_size": 32, "lr": 1e-3, "optimizer": "adam", "clip_grad": None}
    both = digits_model([{"after": 1, "head": "linear"}, {"after": 3, "head": "linear"}])
    alone = digits_model([{"after": 3, "head": "linear"}])
    alone.backbone.load_state_dict(both.backbone.state_dict())
    alone.exits[0].load_state_dict(both.exits[1].state_dict())
    for model in (both, alone):
        fit(model, recipe="classifier_wise", data=data, progress=False, heads=heads)
    for name, value in alone.exits[0].state_dict().items():
        torch.testing.assert_close(both.exits[1].state_dict()[name], value)
