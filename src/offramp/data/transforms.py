"""From images to normalised tensors, one by one or many at a time with the same result.

Small images (up to 64 px, one size) stay a uint8 array: crops and flips are one gather, and one
`interpolate` enlarges the batch once. Larger ones go through timm's transforms.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from offramp import vision_cure
from offramp.data.augment import (
    OFF,
    Augment,
    Preprocessing,
    colour_steps,
    crop_flip,
    random_erasing,
    random_resized_crop,
)
from offramp.data.images import SMALL, Pixels
from offramp.data.randomness import Keys, preserved_globals, seed_globals


def to_tensor(images: Pixels, preprocessing: Preprocessing) -> Tensor:
    """Images (B, h, w[, 3]) resized whole to the input size and normalised: float32 (B, 3, H, W).

    Equal sizes are not resampled. Matches Pillow's resampling to about one grey level.
    """
    batch = torch.from_numpy(images)
    batch = batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2).contiguous()
    size, mode = tuple(preprocessing.image_size), preprocessing.interpolation
    if batch.shape[-2:] != size:
        if mode in ("bilinear", "bicubic"):
            batch = F.interpolate(batch, size=size, mode=mode, antialias=True)
        else:
            batch = _resized_by_pillow(images, size, mode)
    if batch.shape[1] == 1:
        batch = batch.expand(-1, 3, -1, -1)
    return normalised(batch, preprocessing)


def normalised(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, H, W) to float32, minus mean, over deviation."""
    mean = torch.tensor(tuple(preprocessing.mean)).view(1, 3, 1, 1) * 255
    std = torch.tensor(tuple(preprocessing.std)).view(1, 3, 1, 1) * 255
    return batch.to(torch.float32).sub(mean).div_(std)


def _resized_by_pillow(images: Pixels, size: tuple[int, ...], mode: str) -> Tensor:
    known = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}
    method = known.get(mode, Image.Resampling.BICUBIC)
    resized = (Image.fromarray(image).resize((size[1], size[0]), method) for image in images)
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in resized])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


class CentreCrop:
    """timm's evaluation geometry for photos: resize the shorter side, crop the centre."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._transform: Any = None

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8 (3, H, W)."""
        if self._transform is None:  # timm is slow to import, and small images never need it
            vision_cure.ensure()
            from timm.data import create_transform

            self._transform = create_transform(
                input_size=(3, *self.preprocessing.image_size),
                interpolation=self.preprocessing.interpolation,
                crop_pct=self.preprocessing.crop_pct,
                normalize=False,
            )
        shaped: Tensor = self._transform(image)
        return shaped


def eval_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A function from an image to the model's input (3, H, W), as every split is evaluated.

    Photos: timm's resize and centre crop. Images up to 64 px: the whole image is resized.
    """
    transform = Transform(preprocessing)
    unused = np.zeros(1, np.uint64)
    return lambda image: transform.one(image.convert("RGB"), unused)


class Transform:
    """Images of a split to normalised tensors, for evaluation or training.

    Each image's randomness comes from its key alone, so one by one and many at a time agree.
    """

    def __init__(
        self, preprocessing: Preprocessing, *, augment: Augment | None = None, train: bool = False
    ) -> None:
        self.preprocessing = preprocessing
        self.augment = augment if train and augment else OFF
        self._shape = CentreCrop(preprocessing)
        self._crop = random_resized_crop(self.augment, preprocessing)
        self._colour = colour_steps(self.augment, preprocessing)
        self._erase = random_erasing(self.augment)

    @property
    def batched(self) -> bool:
        """Whether small images may stay an array (no crop that changes their scale)."""
        return self._crop is None

    def many(self, images: Pixels, keys: Keys) -> Tensor:
        """Small images (B, h, w[, 3]) and their keys (B,) to float32 (B, 3, H, W)."""
        with preserved_globals():
            return self._many(images, keys)

    def one(self, image: Image.Image, key: Keys) -> Tensor:
        """One RGB image and its key (1,) to float32 (3, H, W)."""
        with preserved_globals():
            if max(image.size) <= SMALL and self._crop is None:
                return self._many(np.asarray(image)[None].copy(), key)[0]
            return self._photo(image, key)

    def _many(self, images: Pixels, keys: Keys) -> Tensor:
        augment = self.augment
        images = crop_flip(images, keys, pad=augment.pad_crop or 0, hflip=augment.hflip)
        if self._colour:
            pairs = zip(images, keys, strict=True)
            images = np.stack([self._coloured(Image.fromarray(i), key) for i, key in pairs])
        return self._erased(to_tensor(images, self.preprocessing), keys)

    def _photo(self, image: Image.Image, key: Keys) -> Tensor:
        pad, hflip = self.augment.pad_crop or 0, self.augment.hflip
        if self._crop is not None:
            seed_globals(int(key[0]))
            image, pad = self._crop(image), 0
        if pad or hflip:
            array = crop_flip(np.asarray(image)[None], key, pad=pad, hflip=hflip)
            image = Image.fromarray(array[0])
        if self._colour:
            image = Image.fromarray(self._coloured(image, key[0]))
        if self._crop is None:
            batch = self._shape(image)[None]
        else:
            batch = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()[None]
        return self._erased(normalised(batch, self.preprocessing), key)[0]

    def _coloured(self, image: Image.Image, key: np.uint64) -> Pixels:
        image = image.convert("RGB")
        seed_globals(int(key) ^ 1)  # not the numbers the crop was drawn with
        for step in self._colour:
            image = step(image)
        return np.asarray(image)

    def _erased(self, batch: Tensor, keys: Keys) -> Tensor:
        if self._erase is not None:
            for image, key in zip(batch, keys, strict=True):
                seed_globals(int(key) ^ 2)
                self._erase(image)
        return batch
