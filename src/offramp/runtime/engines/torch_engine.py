"""PyTorch as it comes: eager execution on CPU or GPU."""

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from offramp import vision_cure
from offramp.runtime.engines.engine import CompiledSegment, Engine, Program, register_engine

if TYPE_CHECKING:
    from offramp.model import MultiExitModel


@register_engine("torch")
class TorchEngine(Engine):
    """PyTorch eager, on the device the model is on.

    Modules are copied, weights are shared where the device stays: a runner keeps evaluation mode
    whatever happens to the model, and costs no second set of weights. Compile again after
    training or moving the model: folded heads do not follow weights that change.
    """

    name = "torch"

    def prepare(
        self, model: "MultiExitModel", active: Sequence[int], *, device: torch.device | None = None
    ) -> Program:
        first = next(model.parameters())
        target = first.device if device is None else device
        parts = model.segments(active, inference=True)
        shared = _tensors(nn.ModuleList(parts)) if target == first.device else {}
        parts = copy.deepcopy(parts, shared)  # all together: segments keep sharing one chain
        _drop_idle(nn.ModuleList(parts).to(target).eval())
        segments = [CompiledSegment(part.exit_index, part) for part in parts]
        return Program(segments, target, first.dtype)


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    """Parameters and buffers as a memo for `copy.deepcopy`, which then shares them."""
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


def _drop_idle(module: nn.Module) -> None:
    """Take out what does nothing in evaluation mode: identities, dropout, drop path.

    timm's ViT makes eleven such calls per block, a few percent of DeiT-tiny's time at batch 1.
    """
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            continue  # their children are addressed by position
        for name, child in list(parent.named_children()):
            if type(child) in _idle_types():
                delattr(parent, name)
                setattr(parent, name, _unchanged)


@cache
def _idle_types() -> tuple[type[nn.Module], ...]:
    vision_cure.ensure()
    from timm.layers import DropPath

    return nn.Identity, nn.Dropout, DropPath


def _unchanged(x: Tensor) -> Tensor:
    return x
