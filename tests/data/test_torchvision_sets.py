"""Named sets in torchvision's layouts, with tiny files made to look like them."""

import gzip
import hashlib
import json
import pickle
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from sample_data import noise, parquet_folder
from scipy.io import savemat

from offramp import vision_cure
from offramp.data import SPLITS, open_dataset
from offramp.errors import OfframpError

vision_cure.ensure()
datasets = pytest.importorskip("torchvision.datasets")


def _pickled(path: Path, value: object) -> tuple[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return path.name, hashlib.md5(path.read_bytes()).hexdigest()


def _cifar(loader: type, root: Path, monkeypatch: pytest.MonkeyPatch, *, key: str) -> np.ndarray:
    images = noise(36, (3, 32, 32))
    folder, names_key = root / loader.base_folder, loader.meta["key"]

    def entry(name: str, rows: slice) -> list[str]:
        labels = [i % 2 for i in range(36)][rows]
        return list(_pickled(folder / name, {"data": images[rows].reshape(-1, 3072), key: labels}))

    file, md5 = _pickled(folder / "meta.bin", {names_key: ["cat", "dog"]})
    monkeypatch.setattr(
        loader, "train_list", [entry("one", slice(15)), entry("two", slice(15, 30))]
    )
    monkeypatch.setattr(loader, "test_list", [entry("three", slice(30, 36))])
    monkeypatch.setattr(loader, "meta", {"filename": file, "key": names_key, "md5": md5})
    return images.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("name", "loader", "key"),
    [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")],
)
def test_cifar(
    name: str, loader: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _cifar(getattr(datasets, loader), tmp_path, monkeypatch, key=key)
    source = open_dataset(name)
    assert source.classes == ["cat", "dog"]
    assert sum(len(source.split(split)) for split in SPLITS) == 36
    test = source.split("test")
    assert test.ids.tolist() == list(range(30, 36))
    assert np.array_equal(np.asarray(test[2][0]), images[32])
    train = source.split("train")
    assert np.array_equal(train.pixels(), images[train.ids])
    assert train.labels.tolist() == [i % 2 for i in train.ids.tolist()]


def test_fashionmnist(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = noise(24, (28, 28))
    for part, rows in {"train": slice(20), "t10k": slice(20, 24)}.items():
        count = len(images[rows])
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        labels = struct.pack(">II", 0x801, count) + bytes(i % 10 for i in range(count))
        for kind, data in {
            "images-idx3": header + images[rows].tobytes(),
            "labels-idx1": labels,
        }.items():
            (raw / f"{part}-{kind}-ubyte").write_bytes(data)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    source = open_dataset("fashionmnist")
    assert source.classes[0] == "T-shirt/top"
    test = source.split("test")
    assert test.pixels().shape == (4, 28, 28)
    assert np.array_equal(np.asarray(test[1][0])[..., 2], images[21])
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(OfframpError, match=r"fashionmnist is not \(whole\) in"):
        open_dataset("fashionmnist")


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(24, (32, 32, 3))
    listed = {}
    for part, rows in {"train": slice(20), "test": slice(20, 24)}.items():
        file = tmp_path / f"{part}.mat"
        labels = np.arange(1, 25)[rows] % 10 + 1
        savemat(file, {"X": images[rows].transpose(1, 2, 3, 0), "y": labels[:, None]})
        listed[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    source = open_dataset("svhn")
    assert source.classes == [str(i) for i in range(10)]
    assert np.array_equal(np.asarray(source.split("test")[3][0]), images[23])


def test_food101(tmp_path: Path) -> None:
    folder = tmp_path / "food-101"
    (folder / "meta").mkdir(parents=True)
    names = {"train": range(10), "test": range(10, 13)}
    for part, numbers in names.items():
        listed = {dish: [f"{dish}/{i}" for i in numbers] for dish in ("pie", "soup")}
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))
        for path in (path for paths in listed.values() for path in paths):
            file = folder / "images" / f"{path}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(1, (70, 90, 3))[0]).save(file)
    source = open_dataset("food101")
    assert source.classes == ["pie", "soup"]
    assert len(source.split("test")) == 6
    assert source.split("train")[0][0].size == (90, 70)
    assert source.split("train").pixels() is None


def test_flowers102_uses_its_own_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    savemat(folder / "labels.mat", {"labels": np.arange(1, 13)[None]})
    parts = {"trnid": range(1, 7), "valid": range(7, 10), "tstid": range(10, 13)}
    savemat(folder / "sets.mat", {key: np.array(list(ids))[None] for key, ids in parts.items()})
    for i in range(1, 13):
        Image.fromarray(noise(1, (70, 90, 3))[0]).save(folder / "jpg" / f"image_{i:05}.jpg")
    files = {
        kind: (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
        for kind, name in {"label": "labels.mat", "setid": "sets.mat"}.items()
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    source = open_dataset("flowers102")
    assert source.num_classes == 102
    assert source.split("validation").labels.tolist() == [6, 7, 8]
    assert source.split("test").labels.tolist() == [9, 10, 11]


def test_parquet_files_come_before_torchvision(tmp_path: Path) -> None:
    parquet_folder(tmp_path / "cifar100")
    source = open_dataset("cifar100")
    assert source.name == "cifar100"
    assert source.classes == ["ant", "bee", "cat"]


def test_absent_sets_say_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OfframpError, match=r"OFFRAMP_DOWNLOAD=0 forbids.*OFFRAMP_DATA") as caught:
        open_dataset("cifar100")
    assert str(tmp_path) in str(caught.value)

    def unreachable(self: object) -> None:
        (tmp_path / "new" / "half").mkdir(parents=True)
        raise URLError("no network")

    monkeypatch.setenv("OFFRAMP_DOWNLOAD", "1")
    monkeypatch.setattr(datasets.CIFAR100, "download", unreachable)
    with pytest.raises(OfframpError, match=r"fetching it failed.*no network.*OFFRAMP_DATA"):
        open_dataset("cifar100", root=tmp_path / "new")
    assert not (tmp_path / "new").exists()
