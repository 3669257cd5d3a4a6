"""What an engine is, and the registry of engines."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from offramp.registry import Registry

if TYPE_CHECKING:
    from offramp.model import MultiExitModel


class Call(Protocol):
    """Run one segment: ``(images)`` or ``(*state)`` → ``(state, outputs)``, batch first."""

    def __call__(self, *inputs: Tensor) -> tuple[tuple[Tensor, ...], Any]: ...


class CompiledSegment(NamedTuple):
    """One segment made ready: the index of the exit it ends in, and how to run it."""

    exit_index: int
    call: Call


class Program(NamedTuple):
    """Everything a runner needs: segments in order, and what tensors they want."""

    segments: list[CompiledSegment]
    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """Name of the element type, as operating points store it."""
        return str(self.dtype).removeprefix("torch.")


class Engine(ABC):
    """Turns the segments of a model into things that run; the first docstring line is listed."""

    name: ClassVar[str]

    @abstractmethod
    def prepare(
        self, model: "MultiExitModel", active: Sequence[int], *, device: torch.device | None = None
    ) -> Program:
        """Compile the segments between active early exits; the final exit is always in."""


ENGINES: Registry[type[Engine]] = Registry("engine")
register_engine = ENGINES.register
