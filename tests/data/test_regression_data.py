"""Data sets of numbers: blobs can be counted, crops add up, splits share no photo."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sample_data import encoded, noise
from scipy.ndimage import label

from offramp.data import SPLITS, DataSource, open_dataset
from offramp.data.count_blobs import LARGEST, draw
from offramp.data.crowd_counting import WHOLE, borders, heads_per_crop
from offramp.errors import OfframpError


def test_blobs_are_as_many_as_their_label_says() -> None:
    images, counts = draw("test", 200)
    cells = images.reshape(200, 4, 6, 4, 6).swapaxes(2, 3)
    brightest = cells.max(axis=(3, 4)).reshape(200, 16)
    lit = (brightest > 0.33 * 255).sum(axis=1)  # no noise is so bright, every disc is
    assert np.array_equal(lit, counts)
    assert counts.min() == 0
    assert counts.max() == LARGEST
    assert np.abs(np.bincount(draw("train", 4000)[1]) - 400).max() < 100
    isolated = images[counts == 1]
    assert all(label(image > 0.33 * 255)[1] == 1 for image in isolated)


def test_pictures_are_functions_of_split_epoch_and_number() -> None:
    few, many = draw("train", 5), draw("train", 9)
    assert np.array_equal(few[0], many[0][:5])
    assert not np.array_equal(draw("train", 5, epoch=1)[0], few[0])
    assert not np.array_equal(draw("test", 5)[0], few[0])
    source = open_dataset("count-blobs", options={"sizes": {"train": 40}}, limit=30)
    train = source.split("train")
    assert train.varies
    assert torch.equal(train.at_epoch(3).labels, train.at_epoch(3).attributes["blobs"].float())
    assert not torch.equal(train.at_epoch(3).labels, train.labels)
    assert not source.split("test").varies


def test_numbers_stay_numbers() -> None:
    source = open_dataset("count-blobs", limit=50)
    assert (source.task, source.num_classes, source.classes) == ("regression", 1, ["blobs"])
    split = source.split("test")
    assert split.labels.dtype == split.take([1, 2]).labels.dtype == torch.float32
    labels = source.split("train").labels
    target = source.target
    assert target is not None
    assert target.mean == pytest.approx(labels.mean().item())
    assert target.std == pytest.approx(labels.std(correction=0).item())
    assert open_dataset("digits").target is None


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd")
    rng = np.random.default_rng(0)
    for name, count in (("train", 24), ("test", 6)):
        pictures = noise(count, (30, 40, 3), seed=len(name))
        points = [(rng.random((n, 2)) * [40, 30]).tolist() for n in rng.integers(0, 20, count)]
        images = [{"bytes": encoded(picture), "path": None} for picture in pictures]
        pq.write_table(pa.table({"image": images, "points": points}), folder / f"{name}.parquet")
    return folder


def opened(folder: Path, **options: Any) -> DataSource:
    return open_dataset(f"crowd-counting:{folder}", calibration=0.2, validation=0.1, **options)


def test_crops_put_together_are_the_photo_and_its_count(crowd: Path) -> None:
    source = opened(crowd, options={"crops": (3, 4)})
    test = source.split("test")
    points = pq.read_table(crowd / "test.parquet")["points"].to_pylist()
    assert len(test) == 6 * 12
    assert test.labels.reshape(6, 12).sum(dim=1).tolist() == [len(places) for places in points]
    assert source.whole == WHOLE
    assert test.attributes[WHOLE].unique().tolist() == list(range(24, 30))
    pixels = test.pixels()
    assert pixels is not None
    photo = pixels[:12].reshape(3, 4, 10, 10, 3).swapaxes(1, 2).reshape(30, 40, 3)
    assert np.array_equal(photo, noise(6, (30, 40, 3), seed=4)[0])
    first = np.asarray(test[13][0])
    assert np.array_equal(first, pixels[13])


def test_no_two_splits_share_a_photo(crowd: Path) -> None:
    source = opened(crowd)
    seen = [set(source.split(name).attributes[WHOLE].tolist()) for name in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 30
    ids = torch.cat([source.split(name).ids for name in SPLITS])
    assert len(ids.unique()) == len(ids) == 30 * 12
    few = opened(crowd, limit=2)
    assert {len(few.split(name)) for name in SPLITS} == {24}  # whole photos


def test_heads_are_counted_where_they_are() -> None:
    corners = [[0, 0], [19.9, 0], [20, 0], [39.9, 29.9], [41, -3]]
    assert heads_per_crop(corners, (40, 30), (1, 2)) == [2, 3]
    assert heads_per_crop(corners, (40, 30), (2, 2)) == [2, 2, 0, 1]
    assert heads_per_crop([], (40, 30), (2, 1)) == [0, 0]
    assert borders(10, 3) == [0, 3, 6, 10]
    rng = np.random.default_rng(1)
    places = (rng.random((50, 2)) * [41, 31]).tolist()
    for grid in ((1, 1), (3, 4), (7, 2)):
        assert sum(heads_per_crop(places, (41, 31), grid)) == 50


def test_what_is_missing_is_named(crowd: Path, tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=r"shanghaitech-b is not in .*OFFRAMP_DATA"):
        open_dataset("shanghaitech-b", root=tmp_path)
    pq.write_table(pa.table({"image": [b"x"], "count": [1]}), tmp_path / "train.parquet")
    with pytest.raises(OfframpError, match=r"train\.parquet: no points column"):
        open_dataset(f"crowd-counting:{tmp_path}")
    with pytest.raises(OfframpError, match=r"crops = .*at least one"):
        opened(crowd, options={"crops": (0, 2)})
