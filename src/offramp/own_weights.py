"""Weights as Offramp itself wrote them: a finished run's, or those of its plain stage."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from offramp.errors import OfframpError
from offramp.files import open_tensors, read_tensors

WEIGHTS = "model.safetensors"
BACKBONE, HEADS = "chain.backbone.", "exits."


def load_own(module: nn.Module, path: Path) -> bool:
    """Load a run's folder, or a file of exactly this module's tensors; False for other files."""
    if path.is_dir():
        load_run_backbone(module, path)
    elif fits(path, module):
        module.load_state_dict(read_tensors(path))
    else:
        return False
    return True


def fits(file: Path, module: nn.Module) -> bool:
    """Whether a safetensors file holds exactly this module's tensors, its classifier included."""
    if file.suffix != ".safetensors":
        return False
    with open_tensors(file) as tensors:
        names = list(tensors.keys())
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return shapes == {name: tuple(value.shape) for name, value in module.state_dict().items()}


def load_run_backbone(module: nn.Module, run: Path) -> None:
    """Put the backbone of a saved model into ``module``.

    A classifier for other classes keeps its new weights; the trunk must be the same.

    Raises:
        OfframpError: when ``run`` holds no such backbone.
    """
    saved = _saved(run, BACKBONE)
    expected = module.state_dict()
    differing = sorted(
        name
        for name in set(saved) | set(expected)
        if name not in saved
        or name not in expected
        or (saved[name].shape != expected[name].shape and not _classifies(module, name))
    )
    if differing:
        raise OfframpError(
            f"{run}: its backbone is another, or for another image size ({differing[0]} differs): "
            "give the same backbone, backbone_args and image_size"
        )
    fitting = {k: v for k, v in saved.items() if v.shape == expected[k].shape}
    module.load_state_dict(expected | fitting)


def load_run_heads(heads: nn.Module, run: Path) -> None:
    """Put the early heads of a saved model into ``heads``.

    Raises:
        OfframpError: when ``run`` holds no such heads at these places.
    """
    saved, expected = _saved(run, HEADS), heads.state_dict()
    differing = sorted(
        name
        for name in set(saved) | set(expected)
        if name not in saved or name not in expected or saved[name].shape != expected[name].shape
    )
    if differing:
        raise OfframpError(
            f"exits.pretrained = {run}: its exits are others ({HEADS}{differing[0]} differs): "
            "give the same layout and places"
        )
    heads.load_state_dict(saved)


def _saved(run: Path, prefix: str) -> dict[str, Tensor]:
    """A saved model's tensors below a prefix."""
    tensors = read_tensors(run / WEIGHTS)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _classifies(module: Any, name: str) -> bool:
    """Whether a tensor belongs to the backbone's classifier, as timm names it."""
    named = (getattr(module, "pretrained_cfg", None) or {}).get("classifier") or ()
    layers = (named,) if isinstance(named, str) else tuple(named)
    return any(name.startswith(f"{layer}.") for layer in layers)
