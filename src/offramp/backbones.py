"""Building a timm backbone from its name, with errors for the person at the keyboard."""

from pathlib import Path
from typing import Any

from torch import nn

from offramp import vision_cure
from offramp.errors import OfframpError, suggest
from offramp.model_config import Preprocessing

Pretrained = bool | str | Path


def build_backbone(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: Pretrained = False,
    image_size: int | tuple[int, int] | None = None,
    arguments: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a backbone with timm.

    Args:
        name: timm model name, also ``hf-hub:owner/model`` or ``local-dir:folder``.
        num_classes: classes of a new classifier; None keeps the model's own.
        pretrained: True takes timm's weights (its cache or the Hub), a path a local file of them.
        image_size: pixels, one number or (H, W); None keeps the model's own.
        arguments: further keyword arguments of ``timm.create_model``.

    Raises:
        OfframpError: for an unknown name, arguments the model refuses, or weights not to be had.
    """
    vision_cure.ensure()
    import timm

    if ":" not in name and not timm.is_model(name):
        raise OfframpError(suggest("model", name, _near(name, timm.list_models())))
    options: dict[str, Any] = dict(arguments or {})
    for taken in ("num_classes", "pretrained"):
        if taken in options:
            raise OfframpError(f"backbone_args.{taken}: give {taken} itself, not as an argument")
    if num_classes is not None:
        options["num_classes"] = num_classes
    if image_size is not None:
        options["img_size"] = image_size
    if isinstance(pretrained, str | Path):
        file = Path(pretrained).expanduser()
        if not file.is_file():
            raise OfframpError(f"pretrained = {file}: no such file (give a local weights file)")
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    else:
        options["pretrained"] = pretrained
    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise OfframpError(f"{name} cannot be built with {options}: {error}") from error
    except Exception as error:
        if not options["pretrained"]:
            raise
        first = str(error).strip().split("\n")[0]
        raise OfframpError(
            f"no weights for {name} ({type(error).__name__}: {first}); give pretrained = PATH of a "
            "local .safetensors or .pth file, or fill timm's cache while online"
        ) from error


def preprocessing_of(backbone: nn.Module, image_size: tuple[int, int]) -> Preprocessing:
    """Mean, standard deviation, interpolation and crop from the model's ``pretrained_cfg``."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    interpolation = config.get("interpolation", "bicubic")
    return Preprocessing(
        image_size=image_size,
        mean=config.get("mean", (0.485, 0.456, 0.406)),
        std=config.get("std", (0.229, 0.224, 0.225)),
        interpolation=interpolation if interpolation in ("bilinear", "nearest") else "bicubic",
        crop_pct=config.get("crop_pct") or 1.0,
    )


def _near(name: str, known: list[str]) -> list[str]:
    """Names worth showing out of more than a thousand: those that share the first word."""
    family = name.split("_")[0]
    return [k for k in known if k.startswith(family)][:400] or known[:24]
