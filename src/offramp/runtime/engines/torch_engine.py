"""PyTorch as it comes: eager execution on CPU or GPU."""

from collections.abc import Sequence

import torch

from offramp.runtime.engines.engine import CompiledSegment, Engine, Program, register_engine
from offramp.runtime.parts import Part


@register_engine("torch")
class TorchEngine(Engine):
    """PyTorch eager, on the device the model is on."""

    name = "torch"
    precisions = ("model", "float32", "bfloat16", "float16")

    @property
    def device(self) -> torch.device | None:
        return self.options.device

    @property
    def part_dtype(self) -> torch.dtype | None:
        return None if self.precision == "model" else getattr(torch, self.precision)

    def prepare(self, parts: Sequence[Part]) -> Program:
        images = parts[0].example[0]
        return Program(
            [CompiledSegment(part.layout, part) for part in parts],
            images.device,
            images.dtype,
            precision=str(images.dtype).removeprefix("torch."),
        )
