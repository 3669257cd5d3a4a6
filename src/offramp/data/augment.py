"""What training does to images: its settings, crops and mirrors on arrays, timm's steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from offramp import vision_cure
from offramp.data.images import Pixels
from offramp.data.randomness import Keys, uniforms
from offramp.errors import OfframpError


class Preprocessing(Protocol):
    """What a model expects of its images."""

    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def std(self) -> Sequence[float]: ...
    @property
    def image_size(self) -> Sequence[int]: ...  # (height, width)
    @property
    def interpolation(self) -> str: ...
    @property
    def crop_pct(self) -> float | None: ...


class Augment(BaseModel):
    """What training does to images and labels; everything is off by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random_resized_crop: tuple[float, float] | None = Field(
        None, description="crop a random share (lowest, highest) of the area, resize to the input"
    )
    pad_crop: int | None = Field(
        None, ge=0, description="pad by this many pixels (reflected), crop back to the native size"
    )
    hflip: bool = Field(False, description="mirror every second image")
    rand_augment: str | None = Field(None, description="timm's spec, as rand-m9-mstd0.5-inc1")
    color_jitter: float = Field(0.0, ge=0, description="brightness, contrast, saturation ± this")
    random_erasing: float = Field(0.0, ge=0, le=1, description="probability, filled with noise")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution; 0 = off")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix's Beta distribution; 0 = off")
    mix_probability: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="mass spread over all classes")

    @field_validator("random_resized_crop")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value and not 0 < value[0] <= value[1] <= 1:
            raise ValueError("needs 0 < lowest <= highest <= 1")
        return value

    @field_validator("rand_augment")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("rand"):
            raise ValueError("is a timm RandAugment spec such as rand-m9-mstd0.5-inc1")
        return value


OFF = Augment()


def crop_flip(images: Pixels, keys: Keys, *, pad: int = 0, hflip: bool = False) -> Pixels:
    """Random crops of reflect-padded images (B, H, W[, 3]) and random mirrors; one key each."""
    count, height, width = images.shape[:3]
    if pad >= min(height, width):
        raise OfframpError(
            f"augment.pad_crop = {pad} does not fit images of {height}×{width} pixels "
            f"(use at most {min(height, width) - 1})"
        )
    if not pad and not hflip:
        return images
    draws = uniforms(keys, 3)
    shift = np.floor(draws[:, :2] * (2 * pad + 1)).astype(np.int64) - pad
    rows = _reflected(np.arange(height)[None, :] + shift[:, :1], height)  # B, H
    columns = _reflected(np.arange(width)[None, :] + shift[:, 1:], width)  # B, W
    if hflip:
        columns = np.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
    return images[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return (size - 1) - np.abs((size - 1) - np.abs(index))


def random_resized_crop(
    augment: Augment, preprocessing: Preprocessing
) -> Callable[[Image.Image], Image.Image] | None:
    """timm's random resized crop to the input size, or None if not asked for."""
    if augment.random_resized_crop is None:
        return None
    vision_cure.ensure()
    from timm.data.transforms import RandomResizedCropAndInterpolation

    crop: Callable[[Image.Image], Image.Image] = RandomResizedCropAndInterpolation(
        tuple(preprocessing.image_size),
        scale=augment.random_resized_crop,
        interpolation=preprocessing.interpolation,
    )
    return crop


def colour_steps(
    augment: Augment, preprocessing: Preprocessing
) -> list[Callable[[Image.Image], Image.Image]]:
    """timm's RandAugment and torchvision's colour jitter, as far as asked for."""
    steps: list[Callable[[Image.Image], Image.Image]] = []
    spec, jitter = augment.rand_augment, augment.color_jitter
    if spec or jitter:
        vision_cure.ensure()
    if spec:
        from timm.data.auto_augment import rand_augment_transform

        mean = tuple(min(255, round(255 * value)) for value in preprocessing.mean)
        try:
            steps.append(_whole_bits(rand_augment_transform(spec, {"img_mean": mean})))
        except (AssertionError, ValueError, KeyError) as error:
            raise OfframpError(
                f"augment.rand_augment = {spec!r} is not a timm RandAugment spec such as "
                f"rand-m9-mstd0.5-inc1 ({error})"
            ) from None
    if jitter:
        from torchvision.transforms import ColorJitter

        steps.append(ColorJitter(jitter, jitter, jitter))
    return steps


def random_erasing(augment: Augment) -> Callable[[Tensor], Tensor] | None:
    """timm's random erasing in place, or None if not asked for."""
    if not augment.random_erasing:
        return None
    vision_cure.ensure()
    from timm.data.random_erasing import RandomErasing

    erase: Callable[[Tensor], Tensor] = RandomErasing(
        augment.random_erasing, mode="pixel", device="cpu"
    )
    return erase


def _whole_bits(rand_augment: Any) -> Any:
    """Keep at least one bit in Posterize: timm may ask for none, and Pillow 13 refuses that."""
    for op in rand_augment.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = partial(_posterize, op.aug_fn)
    return rand_augment


def _posterize(
    original: Callable[..., Image.Image], image: Image.Image, bits: int, **options: Any
) -> Image.Image:
    return original(image, max(1, bits), **options)
