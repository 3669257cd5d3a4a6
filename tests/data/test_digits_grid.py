"""digits-grid: labels are right, pools are disjoint, compositions are functions of their number."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.data import SPLITS, open_dataset
from offramp.data.digits import digit_images, divided
from offramp.data.digits_grid import MOST, POOLS, compose, drawn


def test_label_is_the_largest_digit_in_the_picture() -> None:
    pixels, digits = digit_images()
    known = {image.tobytes(): int(digit) for image, digit in zip(pixels, digits, strict=True)}
    images, labels, count = compose("validation", 300)
    for image, label, number in zip(images, labels, count, strict=True):
        cells = [image[y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
        shown = [known[np.ascontiguousarray(cell).tobytes()] for cell in cells if cell.any()]
        assert len(shown) == number
        assert max(shown) == label


def test_no_digit_image_is_in_two_splits() -> None:
    pools = divided(POOLS)
    used = []
    for split in SPLITS:
        rows, shown = drawn(split, 2000)
        used.append(set(rows[shown].tolist()))
        assert used[-1] <= set(pools[split].tolist())
    assert len(set.union(*used)) == sum(map(len, used))
    assert len(np.unique(np.concatenate(list(pools.values())))) == 1797


def test_every_digit_and_number_of_digits_occurs() -> None:
    source = open_dataset("digits-grid")
    for name in SPLITS:
        split = source.split(name)
        assert split.attributes["digits"].bincount()[1:].min() > len(split) / 5
        assert split.labels.bincount(minlength=10).min() > 0
    assert len(source.split("test")) == 6000
    assert source.split("test").ids[0] == 3 * MOST


@settings(max_examples=20, deadline=None)
@given(size=st.integers(0, 40), more=st.integers(0, 40), epoch=st.integers(0, 5))
def test_composition_depends_on_its_number_only(size: int, more: int, epoch: int) -> None:
    few, many = compose("train", size, epoch=epoch), compose("train", size + more, epoch=epoch)
    for one, other in zip(few, many, strict=True):
        assert np.array_equal(one, other[:size])


def test_train_is_new_every_epoch_and_the_others_are_not() -> None:
    source = open_dataset("digits-grid", options={"sizes": {"train": 50}}, limit=40)
    train = source.split("train")
    assert train.varies
    second = train.at_epoch(2)
    assert torch.equal(second.ids, train.ids)
    assert not np.array_equal(second.pixels(), train.pixels())
    assert np.array_equal(second.pixels(), source.split("train").at_epoch(2).pixels())
    assert np.array_equal(second.at_epoch(0).pixels(), train.pixels())
    images, labels, _ = compose("train", 50, epoch=2)
    assert torch.equal(second.labels, torch.from_numpy(labels)[second.ids])
    assert np.array_equal(second.pixels(), images[second.ids])
    test = source.split("test")
    assert not test.varies
    assert test.at_epoch(3) is test


def test_digits_keep_their_proportions() -> None:
    source = open_dataset("digits")
    shares = source.split("test").labels.bincount() / 539
    assert (shares - 0.1).abs().max() < 0.01
    assert source.split("train")[0][0].size == (8, 8)
