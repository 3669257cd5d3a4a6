"""A trained model at another image size, on the same weights."""

import inspect
from sys import modules
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from offramp.backbones import build
from offramp.chains import chain
from offramp.errors import OfframpError
from offramp.zoo.cascade import share

if TYPE_CHECKING:
    from offramp.model import MultiExitModel

Size = tuple[int, int]


class Resized(NamedTuple):
    """A backbone for another image size.

    Attributes:
        module: shares the original's parameters.
        arguments: of ``timm.create_model``, which build it again.
        own: names of the weights it does not share, for they depend on the size.
    """

    module: nn.Module
    arguments: dict[str, Any]
    own: tuple[str, ...]


@torch.no_grad()
def resized(model: "MultiExitModel", size: Size) -> Resized:
    """The backbone of ``model`` for images of ``size`` (H, W).

    What depends on the size, such as position embeddings, is resampled as timm resamples it when
    it loads weights made for another size. Everything else is shared: trained once, stored once.

    Raises:
        OfframpError: when the backbone cannot be built for this size.
    """
    config = model.config
    if config.external:
        raise OfframpError(
            f"{config.backbone} was given as an object, so it cannot be built for {pixels(size)}"
        )
    arguments = {key: value for key, value in config.backbone_args.items() if key != "img_size"}
    made = build(
        config.backbone, num_classes=config.num_classes, image_size=size, arguments=arguments
    )
    chain(made.module, image_size=size)  # refuses a size the model cannot take
    made.module.eval()
    theirs = model.backbone.state_dict()
    fitted = _resampled(config.backbone, dict(theirs), made.module)
    expected = made.module.state_dict()
    trained = {name for name, _ in made.module.named_parameters(remove_duplicate=False)}
    fitted = {**{name: t for name, t in expected.items() if name not in trained}, **fitted}
    for name, tensor in expected.items():
        if name not in fitted or fitted[name].shape != tensor.shape:
            raise OfframpError(
                f"{config.backbone} cannot go to {pixels(size)}: its {name} has no counterpart "
                "there (train it at that size instead)"
            )
    made.module.load_state_dict({name: fitted[name] for name in expected})
    own = tuple(name for name in expected if not _same(theirs.get(name), fitted[name]))
    share(made.module, model.backbone, own)
    return Resized(made.module, made.arguments, own)


def pixels(size: Size) -> str:
    """A size as people write it: ``112 px``, ``96×128 px``."""
    height, width = size
    return f"{height} px" if height == width else f"{height}×{width} px"


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one, other)


def _resampled(name: str, tensors: dict[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """Weights as the target's family fits them when it loads a checkpoint."""
    import timm

    if ":" in name:
        return tensors
    room = modules[timm.model_entrypoint(name).__module__]
    fit = getattr(room, "checkpoint_filter_fn", None)
    if fit is None or len(inspect.signature(fit).parameters) < 2:
        return tensors
    found: dict[str, Tensor] = fit(tensors, target)
    return found
