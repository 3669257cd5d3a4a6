"""Engines: what executes segments."""

from offramp.runtime.engines import torch_engine
from offramp.runtime.engines.engine import (
    ENGINES,
    Call,
    CompiledSegment,
    Engine,
    Program,
    register_engine,
)

__all__ = [
    "ENGINES",
    "Call",
    "CompiledSegment",
    "Engine",
    "Program",
    "register_engine",
    "torch_engine",
]
