"""A plain model on any engine, to be timed beside a dynamic one."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from offramp.runtime.engines import ENGINES, EngineOptions
from offramp.runtime.parts import EXAMPLES, Layout

Static = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) → logits (B, classes)."""


class WholeModel(nn.Module):
    """A model as the only part of a program: no exit, no decision, ``(images) -> (answer,)``."""

    layout = Layout(exit_index=0, inputs=("images",), flow=(), says=("answer",))

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        first = next(model.parameters())
        shape = (EXAMPLES, in_channels(model), *image_size)
        self.example = (torch.zeros(shape, device=first.device, dtype=first.dtype),)

    def forward(self, *flow: Tensor) -> tuple[Tensor]:  # a part's signature, which exporters bind
        return (self.model(*flow),)


def static_program(
    model: nn.Module,
    image_size: tuple[int, int],
    engine: str = "torch",
    precision: str | None = None,
    *,
    batch_size: int | None = None,
    options: EngineOptions | None = None,
) -> Static:
    """Compile an unmodified model, as its authors run it, for an engine.

    Args:
        model: copied, and put in evaluation mode.
        image_size: (H, W) in pixels.
        engine: name in the engine registry.
        precision: what to compute in; the engine's default when omitted.
        batch_size: the largest batch that will come, where an engine gains from knowing it.
        options: all of it, instead of precision and batch size.

    Raises:
        OfframpError: for an unknown engine or precision, or a model the engine cannot run.
    """
    options = options or EngineOptions(precision=precision, batch_size=batch_size)
    build = ENGINES.get(engine)(options)
    copied = copy.deepcopy(model).to(device=build.device, dtype=build.part_dtype).eval()
    whole: Any = WholeModel(copied, image_size).eval()
    program = build.prepare([whole])
    run = program.segments[0].call

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(images.to(device=program.device, dtype=program.dtype))[0]

    return call


def in_channels(model: nn.Module) -> int:
    """Channels of the images a model takes."""
    return int(getattr(model, "in_chans", None) or 3)
