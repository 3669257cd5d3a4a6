"""Every exit's outputs, computed by an engine: what records are made of."""

from collections import namedtuple
from typing import TYPE_CHECKING, Any

from torch import Tensor

from offramp.runtime.engines.engine import Engine
from offramp.runtime.parts import build_parts

if TYPE_CHECKING:
    from offramp.model import MultiExitModel


class EngineSpeaker:
    """A model whose exits all speak, on an engine: images (B, 3, H, W) → outputs per exit."""

    def __init__(self, model: "MultiExitModel", engine: Engine) -> None:
        everyone = range(len(model.exits))
        parts = build_parts(model, everyone, None, device=engine.device, dtype=engine.part_dtype)
        self._program = engine.prepare(parts)
        # what an exit says, under the names its head gave it
        self._words = [namedtuple("Said", part.layout.says) for part in parts]

    @property
    def precision(self) -> str:
        return self._program.precision

    def __call__(self, images: Tensor) -> list[Any]:
        program, said = self._program, []
        flow: tuple[Tensor, ...] = (images.to(device=program.device, dtype=program.dtype),)
        for segment, words in zip(program.segments, self._words, strict=True):
            width = len(segment.layout.flow)
            returned = segment.call(*flow)
            flow = returned[:width]
            said.append(words(*returned[width:]))
        return said
