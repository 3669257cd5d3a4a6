"""What every stage of a run shares."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from offramp.data import DataSource
from offramp.model import MultiExitModel


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop runs, apart from what the recipe trains."""

    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    workers: int = 0
    checkpoint_minutes: float = 5.0
    progress: bool = True
    minutes: float | None = None
    """Stop after so many minutes with a checkpoint, to be resumed."""


@dataclass(kw_only=True)
class Context:
    """Model, data, folder and devices of a run, and its clock.

    Attributes:
        accelerator: accelerate's handle on devices and precision.
        identity: the recipe as text; a checkpoint of another recipe is refused.
        before: seconds of training before this process resumed.
        fixed: ids of parameters that no stage trains, because the model came with them frozen.
    """

    model: MultiExitModel
    data: DataSource
    run: Path
    options: LoopOptions
    accelerator: Any
    identity: str
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    fixed: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        given = self.model.parameters()
        self.fixed = frozenset(id(p) for p in given if not p.requires_grad)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, over all resumptions."""
        return self.before + time.monotonic() - self.started

    @property
    def out_of_time(self) -> bool:
        """Whether this process has used up its minutes."""
        limit = self.options.minutes
        return limit is not None and time.monotonic() - self.started > 60 * limit
