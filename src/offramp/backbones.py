"""Building a timm backbone from its name, with errors for the person at the keyboard."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from offramp import vision_cure
from offramp.chains import Chain
from offramp.chains.hf import processor_defaults
from offramp.errors import OfframpError, suggest
from offramp.model_config import Preprocessing
from offramp.own_weights import load_own

Pretrained = bool | str | Path


class Built(NamedTuple):
    """A backbone and the arguments of ``timm.create_model`` that build it again.

    Name, classes and weights are not among them; ``img_size`` is, where the model takes it.
    """

    module: nn.Module
    arguments: dict[str, Any]


def register_zoo() -> None:
    """Add the models of ``offramp.zoo`` to those that timm knows by name."""
    vision_cure.ensure()
    import_module("offramp.zoo")


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
        pretrained: True takes timm's weights (its cache or the Hub), a path a local file of them,
            or the folder of a finished run: then its backbone, and its classifier where that has as
            many classes.
        image_size: pixels, one number or (H, W); None keeps the model's own. Models that take
            images of any size are not told.
        arguments: further keyword arguments of ``timm.create_model``.

    Raises:
        OfframpError: for an unknown name, arguments the model refuses, or weights not to be had.
    """
    return build(
        name,
        num_classes=num_classes,
        pretrained=pretrained,
        image_size=image_size,
        arguments=arguments,
    ).module


def build(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: Pretrained = False,
    image_size: int | tuple[int, int] | None = None,
    arguments: dict[str, Any] | None = None,
) -> Built:
    """`build_backbone`, with the arguments that a saved model needs to build it again."""
    register_zoo()
    import timm

    if ":" not in name and not timm.is_model(name):
        raise OfframpError(suggest("model", name, _near(name, timm.list_models())))
    own = dict(arguments or {})
    for taken in ("num_classes", "pretrained"):
        if taken in own:
            raise OfframpError(f"backbone_args.{taken}: give {taken} itself, not as an argument")
    if not isinstance(pretrained, bool) and Path(pretrained).expanduser().exists():
        bare = build(name, num_classes=num_classes, image_size=image_size, arguments=arguments)
        if load_own(bare.module, Path(pretrained).expanduser()):
            return bare
    options = _weights(pretrained)
    if num_classes is not None:
        options["num_classes"] = num_classes
    if image_size is not None:
        try:
            sized = own | {"img_size": image_size}
            return Built(_create(name, options | sized), sized)
        except _SizeRefusedError:
            if "img_size" in own:
                raise
    return Built(_create(name, options | own), own)


class _SizeRefusedError(OfframpError):
    """The model has no argument ``img_size``."""


def _weights(pretrained: Pretrained) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that say where its weights come from."""
    if isinstance(pretrained, bool):
        return {"pretrained": pretrained}
    file = Path(pretrained).expanduser()
    if not file.is_file():
        raise OfframpError(
            f"pretrained = {file}: no such file (give a local weights file or a run)"
        )
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError, ValueError) as error:
        refused = isinstance(error, TypeError) and "'img_size'" in str(error)
        kind = _SizeRefusedError if refused else OfframpError
        raise kind(f"{name} cannot be built with {options}: {error}") from error
    except OfframpError:
        raise  # a converter's own sentence
    except Exception as error:
        if not options["pretrained"]:
            raise
        first = str(error).strip().split("\n")[0]
        raise OfframpError(
            f"no weights for {name} ({type(error).__name__}: {first}); give pretrained = PATH of a "
            "local .safetensors or .pth file, or fill timm's cache while online"
        ) from error


def preprocessing_of(links: Chain, given: Any = None) -> Preprocessing:
    """How images become the backbone's input.

    Args:
        links: the backbone; what it says of itself is taken when nothing is given.
        given: a `Preprocessing`, then that, or an image processor of ``transformers``.
    """
    if isinstance(given, Preprocessing):
        return given
    config = links.input_defaults if given is None else processor_defaults(given)
    interpolation = config.get("interpolation", "bicubic")
    return Preprocessing(
        image_size=links.image_size,
        mean=config.get("mean", (0.485, 0.456, 0.406)),
        std=config.get("std", (0.229, 0.224, 0.225)),
        interpolation=interpolation if interpolation in ("bilinear", "nearest") else "bicubic",
        crop_pct=config.get("crop_pct") or 1.0,
    )


def _near(name: str, known: list[str]) -> list[str]:
    """Names worth showing out of more than a thousand: those that share the first word."""
    family = name.split("_")[0]
    return [k for k in known if k.startswith(family)][:400] or known[:24]
