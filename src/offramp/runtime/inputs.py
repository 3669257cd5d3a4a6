"""Images are checked before any arithmetic: one wrong value would poison its answer silently."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import OfframpError

SHOWN = 10  # sample positions named in a message


@dataclass(frozen=True)
class InputCheck:
    """What a runner accepts: float images (B, channels, H, W), finite everywhere."""

    channels: int
    image_size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype

    @property
    def expected(self) -> str:
        height, width = self.image_size
        return f"an image tensor of shape (B, {self.channels}, {height}, {width})"

    def __call__(self, images: Tensor, *, first: int = 0) -> Tensor:
        """Return the images on the runner's device and in its precision.

        Args:
            images: preprocessed images (B, channels, H, W).
            first: position of the first one in a stream, for the message.

        Raises:
            OfframpError: for another shape or type, and for NaN or infinite values, naming the
                samples that hold them.
        """
        if not isinstance(images, Tensor):
            raise OfframpError(f"expected {self.expected}, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1:] != (self.channels, *self.image_size):
            hint = "; add the batch dimension with images[None]" if images.ndim == 3 else ""
            raise OfframpError(f"expected {self.expected}, got {tuple(images.shape)}{hint}")
        if not images.is_floating_point():
            raise OfframpError(
                f"expected {self.expected} of a floating type, got {images.dtype}: preprocess them"
            )
        # One pass: a sum is finite unless something in it is not (or it overflows: then look).
        if not math.isfinite(images.sum(dtype=torch.float32).item()):
            _name_bad_samples(images, first)
        if images.device == self.device and images.dtype == self.dtype:
            return images
        return images.to(device=self.device, dtype=self.dtype)


def _name_bad_samples(images: Tensor, first: int) -> None:
    bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if not bad:
        return
    named = ", ".join(str(first + position) for position in bad[:SHOWN])
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    plural = "s" if len(bad) > 1 else ""
    raise OfframpError(
        f"NaN or infinite values in sample{plural} {named}{more} (counted from 0): "
        "check how these images were read and normalised"
    )
