"""Weights of other projects: unpacked, renamed by the model's file, and checked before loading."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from offramp.errors import OfframpError

# where training scripts put the weights in what they save, averaged ones first
PACKED_AS = ("state_dict_ema", "model_ema", "state_dict", "model", "net")
WRAPPERS = ("_orig_mod.", "module.")  # torch.compile, data parallel
SHOWN = 4  # names of a kind in a message


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without what a training script wrapped around them.

    Raises:
        OfframpError: when something in it is no tensor.
    """
    found = next((checkpoint[key] for key in PACKED_AS if key in checkpoint), checkpoint)
    if not isinstance(found, Mapping):
        raise OfframpError(f"no weights by name in this checkpoint, but {type(found).__name__}")
    tensors = {}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise OfframpError(
                f"{name} is no tensor but {type(value).__name__}: these are no weights by name "
                f"(looked for {', '.join(PACKED_AS)})"
            )
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        tensors[name] = value
    return tensors


def strict(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return ``state_dict`` if it has exactly the names and shapes of ``model``.

    A model built for other classes than its ``pretrained_cfg`` gets a new classifier; timm leaves
    those weights out afterwards, so they are not compared.

    Raises:
        OfframpError: naming what is missing, what is unexpected, and what has a wrong shape.
    """
    new = _new_classifier(model)
    given = {name: tuple(t.shape) for name, t in state_dict.items() if not name.startswith(new)}
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items() if not n.startswith(new)}
    wrong = [
        f"{name} {given[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    complaints = [
        *_complain("missing", (name for name in wanted if name not in given)),
        *_complain("unexpected", (name for name in given if name not in wanted)),
        *_complain("wrong shape", wrong),
    ]
    if complaints:
        raise OfframpError(f"these weights do not fit {_name(model)}: {'; '.join(complaints)}")
    return dict(state_dict)


def _complain(what: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return [f"{what}: {', '.join(listed[:SHOWN])}{more}"] if listed else []


def _new_classifier(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifiers that timm will not take from the weights."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    if getattr(model, "num_classes", None) == config.get("num_classes"):
        return ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _name(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(model).__name__
