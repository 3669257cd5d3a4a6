"""What image classifiers of ``transformers`` share: answers with more than logits, and defaults.

They are given as objects and recognised by their class's name, so the package is never imported.
Layouts of its versions 4.48 to 5 are read.
"""

from typing import Any

from torch import Tensor, nn

from offramp.errors import OfframpError

# input defaults: what the published weights of a class were trained with
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}


class Logits(nn.Module):
    """A classifier of ``transformers`` as images (B, 3, H, W) → logits (B, num_classes)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.in_chans = int(model.config.num_channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, return_dict=True).logits


def inner(model: Any) -> Any:
    """The headless network inside a classifier."""
    return getattr(model, model.base_model_prefix)


def first(answer: Any) -> Tensor:
    """What a block passes on; some answer with attention weights beside it."""
    return answer[0] if isinstance(answer, tuple) else answer


def pair(value: Any) -> tuple[int, int]:
    """A size from a config, one number or two, as (H, W)."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def typed(model: Any, images: Tensor) -> Tensor:
    """Images in the type of the model's weights, as its own forward casts them."""
    return images.to(next(model.parameters()).dtype)


def processor_defaults(processor: Any) -> dict[str, Any]:
    """What an image processor of ``transformers`` does, under timm's names.

    Taken are mean, std, interpolation and the share of the resized side that the centre crop keeps.
    The aspect ratio is kept where the processor would squeeze the image into a square.

    Raises:
        OfframpError: for another object, or a processor that does not map pixels to 0…1 first.
    """
    if not hasattr(processor, "image_mean"):
        raise OfframpError(
            f"preprocessing = {type(processor).__name__}, but it must be a Preprocessing or an "
            "image processor of transformers"
        )
    factor = float(getattr(processor, "rescale_factor", None) or 1 / 255)
    if not getattr(processor, "do_rescale", True) or abs(factor * 255 - 1) > 1e-6:
        raise OfframpError(
            f"{type(processor).__name__} does not map pixels to 0…1 (do_rescale = "
            f"{processor.do_rescale}, rescale_factor = {factor:g}): give a Preprocessing instead"
        )
    normal = bool(getattr(processor, "do_normalize", True))
    crop = (
        getattr(processor, "crop_size", None)
        if getattr(processor, "do_center_crop", False)
        else None
    )
    return {
        "mean": tuple(processor.image_mean) if normal else (0.0, 0.0, 0.0),
        "std": tuple(processor.image_std) if normal else (1.0, 1.0, 1.0),
        "interpolation": {0: "nearest", 2: "bilinear"}.get(processor.resample, "bicubic"),
        "crop_pct": min(1.0, _side(crop) / _side(processor.size)) if crop else 1.0,
    }


def _side(size: Any) -> float:
    """The shorter side of a size as image processors name it: a number, or a mapping."""
    return float(size if isinstance(size, int) else min(dict(size).values()))
