"""What an engine is, and the registry of engines."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.registry import Registry
from offramp.runtime.parts import Layout, Part

ALIASES = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What people type for a precision."""


class Call(Protocol):
    """Run one part: the tensors of ``layout.inputs`` → those of ``layout.outputs``, batch first."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


class CompiledSegment(NamedTuple):
    """One part made ready: what goes in and comes out, and how to run it."""

    layout: Layout
    call: Call

    @property
    def exit_index(self) -> int:
        return self.layout.exit_index


class Program(NamedTuple):
    """Everything a runner needs: segments in order, and what tensors they want.

    ``borrowed``: the flow a segment returns lies in memory that the next call but one may overwrite
    (the next: of the following segment, on all of it), so whoever keeps it longer copies it.
    ``own_threads``: the engine computes in threads of its own, not torch's.
    ``sizes``: batch sizes there are shapes for; calls fill other batches up. Empty: any size runs
    as it is.
    """

    segments: list[CompiledSegment]
    device: torch.device
    dtype: torch.dtype
    precision: str
    borrowed: bool = False
    own_threads: bool = False
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineOptions:
    """How to compile.

    Args:
        precision: what the engine computes in; None takes its default (the model's, for torch).
        device: where torch engines run; None leaves the model where it is.
        threads: CPU threads of one call; None takes torch's number.
        batch_size: the largest batch that will come, where an engine gains from knowing it: shapes
            are then fixed for every size met, at the price of memory.
        calibration: images (N, 3, H, W) from which int8 ranges are read.
    """

    precision: str | None = None
    device: torch.device | None = None
    threads: int | None = None
    batch_size: int | None = None
    calibration: Tensor | None = None


class Engine(ABC):
    """Turns parts into things that run; the first docstring line is listed."""

    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    """What it can compute in, the default first."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages, besides torch, whose versions belong to its numbers."""

    def __init__(self, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.threads = self.options.threads or torch.get_num_threads()  # as it is now
        wanted = self.options.precision or self.precisions[0]
        self.precision = ALIASES.get(wanted, wanted)
        if self.precision not in self.precisions:
            raise OfframpError(
                f"engine {self.name!r} does not compute in {wanted!r} "
                f"(it has: {', '.join(self.precisions)})"
            )

    @property
    def device(self) -> torch.device | None:
        """Where parts must lie before `prepare`; None: where the model is."""
        return torch.device("cpu")

    @property
    def part_dtype(self) -> torch.dtype | None:
        """What type parts must have before `prepare`; None: the model's."""
        return torch.float32

    @abstractmethod
    def prepare(self, parts: Sequence[Part]) -> Program:
        """Make the parts of a model ready to run."""


class FileEngine(Engine):
    """An engine that runs files: compiling is writing them and opening them again.

    A live program and one opened from an exported bundle are therefore the same thing.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def write(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        """Export parts to ``segment-0``, ``segment-1`` … in ``folder``; the main file of each."""

    @abstractmethod
    def open(self, files: Sequence[Path], layouts: Sequence[Layout]) -> Program:
        """Load exported parts."""

    def prepare(self, parts: Sequence[Part]) -> Program:
        with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
            files = self.write(parts, Path(folder))
            return self.open(files, [part.layout for part in parts])


ENGINES: Registry[type[Engine]] = Registry("engine")
register_engine = ENGINES.register
