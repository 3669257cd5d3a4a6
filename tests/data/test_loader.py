"""Order, resuming, workers, processes and mixing are pure functions of (seed, epoch, index)."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_data import image_folder, parquet_folder, preprocessing

from offramp.data import Augment, Batch, Split, batches, mix, open_dataset
from offramp.data.loader import _Producer
from offramp.data.transforms import Transform
from offramp.errors import OfframpError

AUGMENT = Augment(pad_crop=1, hflip=True, random_erasing=0.5)


def _grid() -> Split:
    return open_dataset("digits-grid", options={"sizes": {"train": 50}}).split("train")


def _all(split: Split, **options: Any) -> list[Batch]:
    options = {"batch_size": 8, "preprocessing": preprocessing((16, 16))} | options
    return list(batches(split, **options))


def _same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 20),
    start=st.integers(0, 30),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
    train=st.booleans(),
)
def test_starting_late_gives_the_tail(
    batch_size: int, start: int, seed: int, epoch: int, train: bool
) -> None:
    options = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "train": train}
    split = _grid()
    whole = _all(split, augment=AUGMENT, **options)
    tail = _all(split, augment=AUGMENT, start=start, **options)
    assert _same(whole[start:], tail)
    late = batches(split, preprocessing=preprocessing(), start=start, **options)
    assert len(late) == len(tail)
    seen = torch.cat([batch.ids for batch in whole])
    assert len(seen.unique()) == len(seen) == (50 // batch_size * batch_size if train else 50)


def test_order_and_pictures_change_with_seed_and_epoch() -> None:
    split = open_dataset("digits").split("train")
    orders = [
        torch.cat([b.ids for b in _all(split, train=True, seed=seed, epoch=epoch)]).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    pictures = []
    for epoch in (0, 1, 0):
        made = _all(split, train=True, augment=AUGMENT, epoch=epoch)
        images, ids = torch.cat([b.images for b in made]), torch.cat([b.ids for b in made])
        pictures.append(images[ids == ids.sort().values[5]])
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])


def test_evaluation_is_in_order_and_complete() -> None:
    split = open_dataset("digits").split("calibration")
    made = _all(split, seed=5, epoch=3)
    assert torch.equal(torch.cat([batch.ids for batch in made]), split.ids)
    assert torch.equal(torch.cat([batch.labels for batch in made]), split.labels)
    assert [len(batch.labels) for batch in made][-1] == 75 % 8
    assert made[0].images.dtype == torch.float32
    assert made[0].images.shape == (8, 3, 16, 16)


def test_training_epochs_of_a_varying_split_are_new_and_labelled() -> None:
    split = _grid()
    first, second = (_all(split, train=True, epoch=epoch) for epoch in (0, 1))
    assert not _same(first, second)
    later = split.at_epoch(1)
    for batch in second:
        assert torch.equal(batch.labels, later.labels[batch.ids])
    assert _same(_all(split, epoch=0), _all(split, epoch=4))  # evaluation stays with epoch 0


@pytest.mark.parametrize("kind", ["array", "photos", "photos scaled"])
def test_workers_and_batch_size_change_nothing(kind: str, tmp_path: Path) -> None:
    augment = AUGMENT
    if kind == "array":
        parquet_folder(tmp_path / "pq")
        split = open_dataset("parquet:pq").split("train")
    else:
        image_folder(tmp_path / "photos", {"train": 24, "test": 4})
        split = open_dataset("imagefolder:photos").split("train")
        if kind == "photos scaled":
            augment = Augment(random_resized_crop=(0.5, 1), rand_augment="rand-m6-n2")
    options = {"augment": augment, "train": True, "drop_last": False, "seed": 3}
    alone = _all(split, batch_size=1, **options)
    together = _all(split, batch_size=7, **options)
    joined = Batch(*(torch.cat(parts) for parts in zip(*alone, strict=True)))
    for i, part in enumerate(together):
        wanted = Batch(*(x[i * 7 : i * 7 + 7] for x in joined))
        assert _same([part], [wanted])
    state = torch.get_rng_state()
    assert _same(together, _all(split, batch_size=7, workers=2, **options))
    assert _same(together[2:], _all(split, batch_size=7, workers=1, start=2, **options))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_producer_survives_the_way_to_a_spawned_worker() -> None:
    split = _grid().at_epoch(1)
    for augment in (AUGMENT, Augment(rand_augment="rand-m9", color_jitter=0.1)):
        transform = Transform(preprocessing((16, 16)), augment=augment, train=True)
        plan = [torch.arange(4).numpy()]
        producer = _Producer(split, plan, transform, seed=0, epoch=1)
        assert _same([pickle.loads(pickle.dumps(producer))[0]], [producer[0]])


@settings(max_examples=15, deadline=None)
@given(world=st.integers(1, 4), batch_size=st.integers(1, 6), train=st.booleans())
def test_processes_share_every_global_batch(world: int, batch_size: int, train: bool) -> None:
    split = _grid()
    options = {"augment": AUGMENT, "train": train}
    whole = _all(split, batch_size=batch_size * world, **options)
    ranks = [
        _all(split, batch_size=batch_size, rank=rank, world=world, **options)
        for rank in range(world)
    ]
    for index, batch in enumerate(whole):
        parts = [mine[index] for mine in ranks if index < len(mine)]
        assert _same([Batch(*(torch.cat(x) for x in zip(*parts, strict=True)))], [batch])


def test_too_large_batches_and_wrong_sizes_are_refused() -> None:
    split = _grid()
    with pytest.raises(OfframpError, match="50 images, fewer than one batch of 128"):
        _all(split, batch_size=64, world=2, train=True)
    with pytest.raises(OfframpError, match="batch_size = 0"):
        _all(split, batch_size=0)
    assert len(_all(split, batch_size=64)) == 1
    assert not _all(split, start=99)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(mixup=0.8),
        Augment(cutmix=1.0),
        Augment(mixup=0.8, cutmix=1.0, mix_probability=0.5, label_smoothing=0.1),
        Augment(label_smoothing=0.1),
        Augment(),
    ],
)
def test_mixing_is_a_function_of_where_the_batch_stands(augment: Augment) -> None:
    batch = _all(_grid(), train=True)[0]
    before = batch.images.clone()
    state = torch.get_rng_state()
    made = [mix(batch, augment, num_classes=10, index=index) for index in (0, 0, *range(1, 6))]
    assert torch.equal(batch.images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].targets, made[1].targets)
    for mixed in made:
        assert mixed.targets.shape == (8, 10)
        torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(8))
    changes = any(not torch.equal(made[0].images, other.images) for other in made[2:])
    assert changes == bool(augment.mixup or augment.cutmix)
    if augment == Augment():
        assert torch.equal(made[0].targets.argmax(dim=1), batch.labels)


def test_mixing_needs_pairs() -> None:
    batch = _all(_grid(), batch_size=7)[0]
    with pytest.raises(OfframpError, match="even batch size, this batch has 7"):
        mix(batch, Augment(mixup=0.8), num_classes=10)
    assert mix(batch, Augment(), num_classes=10).targets.shape == (7, 10)
