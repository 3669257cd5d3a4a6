"""Batched equals one by one, the fast path equals timm's, randomness is a function of the key."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from sample_data import noise, preprocessing

from offramp import vision_cure
from offramp.data import Augment, eval_transform
from offramp.data.augment import crop_flip
from offramp.data.images import read_image
from offramp.data.randomness import sample_keys, shuffled, uniforms
from offramp.data.transforms import Transform, to_tensor
from offramp.errors import OfframpError

AUGMENTS = {
    "off": Augment(),
    "shift": Augment(pad_crop=3, hflip=True),
    "erase": Augment(pad_crop=2, random_erasing=0.9),
    "rand": Augment(hflip=True, rand_augment="rand-m10-n4-mstd0.5-inc1"),
    "jitter": Augment(color_jitter=0.4, rand_augment="rand-m5-n1"),
    "rrc": Augment(random_resized_crop=(0.3, 0.9), hflip=True, color_jitter=0.2),
}


def _keys(count: int, seed: int = 0) -> np.ndarray:
    return sample_keys(np.arange(count), seed=seed, stream="augment")


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("size", [(24, 24), (8, 8), (5, 9)])
def test_many_small_images_equal_one_by_one(name: str, size: tuple[int, int]) -> None:
    images = noise(9)
    transform = Transform(preprocessing(size), augment=AUGMENTS[name], train=True)
    keys = _keys(9)
    alone = torch.stack(
        [transform.one(Image.fromarray(images[i]), keys[i : i + 1]) for i in range(9)]
    )
    assert alone.shape == (9, 3, *size)
    assert alone.dtype == torch.float32
    if transform.batched:
        assert torch.equal(transform.many(images, keys), alone)
        assert torch.equal(transform.many(images[3:5], keys[3:5]), alone[3:5])


@pytest.mark.parametrize("name", AUGMENTS)
def test_photos_depend_on_their_key_only(name: str) -> None:
    image = Image.fromarray(noise(1, (70, 90, 3))[0])
    transform = Transform(preprocessing(), augment=AUGMENTS[name], train=True)
    keys = _keys(6)
    first = [transform.one(image, keys[i : i + 1]) for i in range(6)]
    assert torch.equal(transform.one(image, keys[2:3]), first[2])
    assert all(made.shape == (3, 24, 24) for made in first)
    different = any(not torch.equal(first[0], other) for other in first[1:])
    assert different == (name != "off")


def test_evaluation_ignores_augmentation() -> None:
    image = Image.fromarray(noise(1, (70, 90, 3))[0])
    plain = Transform(preprocessing()).one(image, _keys(1))
    off = Transform(preprocessing(), augment=AUGMENTS["rand"], train=False).one(image, _keys(1))
    assert torch.equal(plain, off)
    assert torch.equal(eval_transform(preprocessing())(image), plain)


@pytest.mark.parametrize("size", [(24, 24), (24, 32)])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
def test_photos_are_evaluated_as_timm_does(size: tuple[int, int], crop_pct: float) -> None:
    vision_cure.ensure()
    from timm.data import create_transform

    prepared = preprocessing(size, crop_pct=crop_pct)
    theirs = create_transform(
        input_size=(3, *size),
        interpolation="bicubic",
        mean=prepared.mean,
        std=prepared.std,
        crop_pct=crop_pct,
    )
    image = Image.fromarray(noise(1, (70, 90, 3))[0])
    torch.testing.assert_close(eval_transform(prepared)(image), theirs(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("interpolation", "levels"), [("bicubic", 2), ("bilinear", 2), ("lanczos", 0)]
)
def test_small_images_are_resized_as_pillow_does(interpolation: str, levels: int) -> None:
    image = noise(1, (32, 32, 3))[0]
    method = Image.Resampling[interpolation.upper()]
    theirs = np.asarray(Image.fromarray(image).resize((112, 96), method)).astype(int)
    prepared = preprocessing((96, 112), interpolation)
    made = eval_transform(prepared)(Image.fromarray(image))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (prepared.mean, prepared.std))
    grey = ((made * std + mean) * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(grey - theirs).max() <= levels


def test_equal_size_is_not_resampled_and_grey_is_spread() -> None:
    grey = noise(3, (16, 16))
    prepared = preprocessing((16, 16))
    made = to_tensor(grey, prepared)
    back = (made * torch.tensor(prepared.std).view(3, 1, 1)).add(
        torch.tensor(prepared.mean).view(3, 1, 1)
    )
    for channel in range(3):
        assert np.array_equal((back[:, channel] * 255).round().numpy(), grey)
    colour = np.repeat(grey[..., None], 3, axis=3)
    for size in ((16, 16), (20, 20)):
        one, other = (to_tensor(x, preprocessing(size)) for x in (grey, colour))
        torch.testing.assert_close(one, other)
    assert to_tensor(grey, preprocessing((20, 20), "lanczos")).shape == (3, 3, 20, 20)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    pad=st.integers(0, 4),
    hflip=st.booleans(),
    grey=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_crops_are_windows_of_the_reflected_image(
    height: int, width: int, pad: int, hflip: bool, grey: bool, seed: int
) -> None:
    images = noise(3, (height, width) if grey else (height, width, 3), seed=seed)
    keys = sample_keys(np.arange(3), seed=seed)
    if pad >= min(height, width):
        with pytest.raises(OfframpError, match=f"pad_crop = {pad} does not fit"):
            crop_flip(images, keys, pad=pad, hflip=hflip)
        return
    made = crop_flip(images, keys, pad=pad, hflip=hflip)
    for image, result in zip(images, made, strict=True):
        around = ((pad, pad), (pad, pad), (0, 0))[: image.ndim]
        padded = np.pad(image, around, mode="reflect")
        windows = [
            padded[y : y + height, x : x + width]
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
        ]
        mirrored = [window[:, ::-1] for window in windows] if hflip else []
        assert any(np.array_equal(result, window) for window in windows + mirrored)


def test_every_shift_and_both_mirrors_occur() -> None:
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    made = crop_flip(np.repeat(image, 400, axis=0), _keys(400), pad=1, hflip=True)
    assert len(np.unique(made.reshape(400, -1), axis=0)) == 9 * 2


def test_global_generators_are_left_as_they_were() -> None:
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for name in ("rand", "jitter", "erase", "rrc"):
        transform = Transform(preprocessing(), augment=AUGMENTS[name], train=True)
        transform.one(Image.fromarray(noise(1)[0]), _keys(1))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_posterize_keeps_a_bit() -> None:
    """timm asks for none at magnitude 10 and above; Pillow 13 refuses."""
    augment = Augment(rand_augment="rand-m10-n8-inc1")
    images = noise(40)
    made = Transform(preprocessing(), augment=augment, train=True).many(images, _keys(40))
    assert made.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("random_resized_crop", (0.9, 0.3)),
        ("pad_crop", -1),
        ("rand_augment", "augmix"),
        ("label_smoothing", 1.0),
        ("random_erasing", 2.0),
        ("horizontal_flip", True),
    ],
)
def test_wrong_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Augment(**{field: value})


def test_wrong_rand_augment_spec() -> None:
    with pytest.raises(OfframpError, match=r"'rand-q9' is not a timm RandAugment spec"):
        Transform(preprocessing(), augment=Augment(rand_augment="rand-q9"), train=True)


def test_read_image_gives_rgb(tmp_path: Path) -> None:
    Image.fromarray(noise(1, (9, 7))[0]).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").mode == "RGB"


def test_keys_are_frozen_and_spread() -> None:
    """Frozen values: another platform or version must draw the same numbers."""
    keys = sample_keys(np.arange(3), seed=1, epoch=2, stream="x")
    assert keys.tolist() == KEYS
    assert len(np.unique(_keys(100_000))) == 100_000
    draws = uniforms(_keys(50_000), 3)
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.02
    assert 0 <= draws.min() < draws.max() < 1
    assert sorted(shuffled(np.arange(50)).tolist()) == list(range(50))
    assert shuffled(np.arange(50), epoch=1).tolist() != shuffled(np.arange(50)).tolist()


KEYS = [2223477735131239933, 4335827591273838010, 3048384457813619226]
