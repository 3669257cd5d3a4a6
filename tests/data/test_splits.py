"""Splits never overlap, are cut the same everywhere, and say what is wrong with a data set."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_data import encoded, image_folder, noise, parquet_folder, write_parquet

from offramp.data import DATASETS, SPLITS, DataSource, open_dataset, read_image
from offramp.data.cutting import Part, cut
from offramp.data.images import ArrayImages
from offramp.data.source import Request
from offramp.errors import OfframpError


def _sources(tmp_path: Path) -> dict[str, DataSource]:
    parquet_folder(tmp_path / "pq")
    image_folder(tmp_path / "photos", {"train": 30, "test": 6})
    image_folder(tmp_path / "flat", {"": 30})
    sizes = {"train": 300, "calibration": 100, "validation": 50, "test": 200}
    return {
        "digits": open_dataset("digits"),
        "digits-grid": open_dataset("digits-grid", options={"sizes": sizes}),
        "parquet": open_dataset(f"parquet:{tmp_path / 'pq'}"),
        "imagefolder": open_dataset(f"imagefolder:{tmp_path / 'photos'}"),
        "flat imagefolder": open_dataset("imagefolder:flat", root=tmp_path),
    }


def test_splits_share_neither_ids_nor_images(tmp_path: Path) -> None:
    for name, source in _sources(tmp_path).items():
        ids = [source.split(split).ids for split in SPLITS]
        assert len(torch.cat(ids).unique()) == sum(map(len, ids)), name
        content = [
            {hashlib.sha256(image.tobytes()).digest() for image, _, _ in map(split.__getitem__, r)}
            for split in map(source.split, SPLITS)
            for r in [range(len(split))]
        ]
        # Compositions of one digit may look alike by chance, but not across pools of digits.
        assert len(set.union(*content)) == sum(map(len, content)), name


def test_items_agree_with_the_tensors_of_their_split(tmp_path: Path) -> None:
    for source in _sources(tmp_path).values():
        split = source.split("train")
        image, label, number = split[3]
        assert image.mode == "RGB"
        assert (label, number) == (int(split.labels[3]), int(split.ids[3]))
        assert split.labels.dtype == split.ids.dtype == torch.int64
        assert len(split) == len(split.ids) == len(split.labels)
        assert split.labels.max() < source.num_classes
        pixels = split.pixels()
        if pixels is not None:
            array = np.asarray(image)
            assert np.array_equal(
                pixels[3] if pixels.ndim == 4 else pixels[3, ..., None],
                array[..., : 3 if pixels.ndim == 4 else 1],
            )
        assert split.pixels() is pixels


def test_cuts_are_the_same_everywhere() -> None:
    """Frozen values: calibration of yesterday and of another machine must be today's."""
    source = open_dataset("digits")
    assert source.split("calibration").ids[:6].tolist() == CALIBRATION_IDS
    assert [len(source.split(name)) for name in SPLITS] == [1133, 75, 50, 539]


CALIBRATION_IDS = [27, 59, 87, 124, 125, 129]


@settings(max_examples=40, deadline=None)
@given(
    train=st.integers(1, 60),
    test=st.integers(0, 20),
    validation_part=st.integers(0, 10),
    shares=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    limit=st.one_of(st.none(), st.integers(1, 30)),
    variety=st.integers(1, 255),
)
def test_any_cut_is_a_partition_without_repeats(
    train: int,
    test: int,
    validation_part: int,
    shares: tuple[float, float],
    limit: int | None,
    variety: int,
) -> None:
    rng = np.random.default_rng(train + 100 * test)

    def part(count: int) -> Part:
        pixels = rng.integers(0, variety, (count, 1, 1), dtype=np.uint8)
        return Part(ArrayImages(pixels), pixels[:, 0, 0].astype(np.int64))

    parts = {"train": part(train), "test": part(test), "validation": part(validation_part)}
    request = Request("some", calibration=shares[0], validation=shares[1], limit=limit)
    source = cut(request, ["0"], parts)
    seen: set[int] = set()
    shown: dict[str, set[int]] = {}
    for name in SPLITS:
        try:
            split = source.split(name)
        except OfframpError:
            continue
        assert limit is None or len(split) <= limit
        assert not seen & set(split.ids.tolist())
        seen |= set(split.ids.tolist())
        shown[name] = {split[i][0].getpixel((0, 0))[0] for i in range(len(split))}
        assert [split[i][0].getpixel((0, 0))[0] for i in range(len(split))] == split.labels.tolist()
    cut_from_train = [shown[name] for name in ("train", "calibration") if name in shown]
    elsewhere = [shown[name] for name in ("test", "validation") if name in shown]
    for index, one in enumerate(cut_from_train):
        for other in cut_from_train[:index] + elsewhere:
            assert not one & other


def test_limits_are_nested_and_keep_attributes() -> None:
    few, more = (open_dataset("digits-grid", limit=count) for count in (20, 50))
    assert set(few.split("test").ids.tolist()) < set(more.split("test").ids.tolist())
    split = open_dataset("digits-grid", limit={"test": 7}).split("test")
    whole = open_dataset("digits-grid").split("test")
    assert len(split) == 7
    at = split.ids - whole.ids[0]
    assert torch.equal(split.attributes["digits"], whole.attributes["digits"][at])
    assert len(open_dataset("digits-grid", limit={"test": 7}).split("calibration")) == 4000
    assert "7 images" in repr(split)


def test_official_validation_and_missing_parts(tmp_path: Path) -> None:
    image_folder(tmp_path / "three", {"train": 20, "val": 6, "test": 4})
    three = open_dataset("imagefolder:three")
    assert [len(three.split(name)) for name in SPLITS] == [19, 1, 6, 4]
    image_folder(tmp_path / "two", {"train": 20, "val": 6})
    two = open_dataset("imagefolder:two")
    assert len(two.split("test")) == 6
    assert two.split("test").ids.min() == 20
    image_folder(tmp_path / "only", {"val": 20})
    only = open_dataset("imagefolder:only", calibration=0.25, validation=0)
    assert only.classes == ["cat", "dog"]
    assert [len(only.split(name)) for name in ("calibration", "test")] == [5, 15]
    with pytest.raises(OfframpError, match=r"train split is empty .*calibration 5.*test 15"):
        only.split("train")


def test_folders_may_be_classes_named_like_parts(tmp_path: Path) -> None:
    image_folder(tmp_path / "odd", {"": 8})
    (tmp_path / "odd" / "dog").rename(tmp_path / "odd" / "test")
    assert open_dataset("imagefolder:odd").classes == ["cat", "test"]


def test_repeated_images_are_dropped_from_train(tmp_path: Path) -> None:
    images = [encoded(image) for image in noise(10)]
    train = [*images, images[0], images[1]]
    write_parquet(tmp_path / "p" / "train.parquet", train, [0] * 12)
    write_parquet(tmp_path / "p" / "test.parquet", images[8:], [0] * 2)
    source = open_dataset("parquet:p", calibration=0.2, validation=0)
    ids = torch.cat([source.split("train").ids, source.split("calibration").ids])
    assert sorted(ids.tolist()) == list(range(8))
    assert source.split("test").ids.tolist() == [12, 13]


@pytest.mark.parametrize(
    ("columns", "labels", "options", "classes"),
    [
        (("img", "fine_label"), [0, 2] * 6, {}, ["0", "1", "2"]),
        (("image", "label"), ["wolf", "elk"] * 6, {}, ["elk", "wolf"]),
        (("image", "label"), [0, 2] * 6, {"num_classes": 5}, ["0", "1", "2", "3", "4"]),
        (("photo", "kind"), [0, 1] * 6, {"image": "photo", "label": "kind"}, ["0", "1"]),
    ],
)
def test_parquet_layouts(
    tmp_path: Path,
    columns: tuple[str, str],
    labels: list[object],
    options: dict[str, object],
    classes: list[str],
) -> None:
    images = [encoded(image) for image in noise(12)]
    file = write_parquet(tmp_path / "a.parquet", images, labels, columns=columns, struct=False)
    source = open_dataset(f"parquet:{file}", options=options)
    assert source.classes == classes
    assert len(source.split("test")) == 1  # a tenth, as there is no test file
    label = int(source.split("test").labels[0])
    assert classes[label] == str(labels[int(source.split("test").ids[0])])


def test_pixels_only_for_small_images_of_one_size(tmp_path: Path) -> None:
    mixed = [encoded(noise(1, (8 + i % 2, 8, 3), seed=i)[0]) for i in range(20)]
    large = [encoded(image) for image in noise(5, (70, 70, 3))]
    for name, images in {"mixed": mixed, "large": large}.items():
        write_parquet(tmp_path / f"{name}.parquet", images, [0] * len(images))
        split = open_dataset(f"parquet:{name}.parquet", calibration=0, validation=0).split("train")
        assert split.pixels() is None
    assert split.take([]).pixels() is None
    large_array = ArrayImages(noise(2, (70, 70)))
    assert large_array.pixels(np.arange(2)) is None


def _broken_file(folder: Path) -> str:
    image_folder(folder / "b", {"train": 8, "test": 2})
    (folder / "b" / "test" / "cat" / "001.png").write_bytes(b"not an image")
    split = open_dataset("imagefolder:b").split("test")
    [split[i] for i in range(2)]
    return ""


def _truncated_row(folder: Path) -> str:
    images = [encoded(image, "JPEG") for image in noise(6, (80, 80, 3))]
    write_parquet(folder / "t" / "test-0.parquet", images[:4], [0] * 4)
    write_parquet(folder / "t" / "test-1.parquet", [images[4], images[5][:500]], [0] * 2)
    split = open_dataset("parquet:t", calibration=0, validation=0).split("test")
    [split[i] for i in range(6)]
    return ""


def _opening(spec: str, **options: object) -> Callable[[Path], object]:
    return lambda folder: open_dataset(spec, **options)


def _with(prepare: Callable[[Path], object], spec: str) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        prepare(folder)
        return open_dataset(spec)

    return run


def _one(name: str, images: list[bytes | None], labels: list[object], **more: object) -> object:
    return lambda folder: write_parquet(folder / name, images, labels, **more)


PNG = encoded(noise(1)[0])
ONE = "parquet:a.parquet"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_opening("cifar"), "unknown data set 'cifar' .did you mean 'cifar10' or 'cifar100'"),
        (lambda _: open_dataset("digits").split("tset"), "unknown split 'tset' .did you mean"),
        (_opening("digits", calibration=0.9, validation=0.1), "together below 1"),
        (_opening("digits", limit=0), "use at least 1"),
        (_opening("digits", limit={"tests": 3}), "limit: unknown split 'tests'"),
        (_opening("digits:here"), "takes no path"),
        (_opening("digits", options={"size": 3}), "option size: Unexpected"),
        (_opening("digits-grid", options={"sizes": {"tran": 3}}), "unknown split 'tran'"),
        (_opening("digits-grid", options={"sizes": {"train": -3}}), "sizes.train = -3"),
        (_opening("digits-grid", options={"sizes": 3}), "option sizes"),
        (_opening("imagefolder"), "imagefolder:PATH"),
        (_opening("imagefolder:nowhere"), "nowhere does not exist"),
        (_opening("parquet:nowhere"), "nowhere does not exist"),
        (_with(lambda f: (f / "e").mkdir(), "parquet:e"), "no .parquet file"),
        (_with(lambda f: (f / "e").mkdir(), "imagefolder:e"), "no class folders"),
        (_with(lambda f: (f / "e" / "cat").mkdir(parents=True), "imagefolder:e"), "is empty"),
        (_with(lambda f: (f / "e").write_text(""), "imagefolder:e"), "not a folder"),
        (
            _with(
                lambda f: (
                    image_folder(f / "o", {"train": 4, "test": 2}),
                    (f / "o" / "test" / "dog").rename(f / "o" / "test" / "eel"),
                ),
                "imagefolder:o",
            ),
            "'eel' does not occur in train",
        ),
        (_with(lambda f: (f / "a.parquet").write_bytes(b"PAR1"), ONE), "readable"),
        (_with(_one("a.parquet", [], []), ONE), "is empty"),
        (_with(_one("a.parquet", ["text"], [0], struct=False), ONE), "expected image bytes"),
        (
            _with(_one("a.parquet", [PNG], [0], columns=("x", "label")), ONE),
            "no image column",
        ),
        (
            _with(_one("a.parquet", [PNG], [0], columns=("image", "y")), ONE),
            "no label column",
        ),
        (_with(_one("a.parquet", [PNG], [1.5]), ONE), "is double, expected class"),
        (
            _with(_one("a.parquet", [PNG, PNG], [1, None]), ONE),
            "row 1 has no label",
        ),
        (_with(_one("a.parquet", [PNG], [-1]), ONE), "row 0: label -1 is none"),
        (_with(_one("a.parquet", [PNG], [7], names=["a", "b"]), ONE), "none of the 2 classes"),
        (
            _with(_one("a.parquet", [PNG], ["c"], names=["a", "b"]), ONE),
            "label 'c'",
        ),
        (_with(_one("a.parquet", [PNG, None], [0, 0]), ONE), "row 1: no image"),
        (
            _with(
                lambda f: (
                    write_parquet(f / "n" / "train-0.parquet", [PNG], [0], names=["a"]),
                    write_parquet(f / "n" / "train-1.parquet", [PNG], [0], names=["b"]),
                ),
                "parquet:n",
            ),
            "train-1.parquet: other class names",
        ),
        (_broken_file, "001.png: the image cannot be read"),
        (_truncated_row, "test-1.parquet: row 1: the image cannot be read"),
        (lambda f: read_image(f / "absent.png"), "absent.png: no such image file"),
    ],
)
def test_bad_input_is_one_clear_sentence(
    tmp_path: Path, act: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(OfframpError, match=message) as caught:
        act(tmp_path)
    assert "\n" not in str(caught.value)


def test_every_data_set_says_what_it_is() -> None:
    assert {"digits", "digits-grid", "cifar100", "imagefolder", "parquet"} <= set(DATASETS.names())
    for name in DATASETS.names():
        assert len(DATASETS.describe(name)) > 20


def test_data_root_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Request("digits").root == tmp_path
    monkeypatch.delenv("OFFRAMP_DATA")
    assert Request("digits").root == Path("data")
    assert os.fspath(Request("digits", root="there").root) == "there"
    assert "digits" in repr(open_dataset("digits"))


def test_every_way_of_keeping_images_counts_them(tmp_path: Path) -> None:
    image_folder(tmp_path / "f", {"train": 6})
    write_parquet(tmp_path / "a.parquet", [encoded(image) for image in noise(3)], [0] * 3)
    for spec, count in {"imagefolder:f": 6, ONE: 3, "digits": 1258}.items():
        split = open_dataset(spec, calibration=0, validation=0).split("train")
        assert len(split.images) == count
    with pytest.raises(IndexError):
        open_dataset(ONE, validation=0, calibration=0).split("train").images.place(3)
