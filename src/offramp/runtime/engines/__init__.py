"""Engines: what executes segments."""

from offramp.runtime.engines import onnxruntime_engine, openvino_engine, torch_engine
from offramp.runtime.engines.engine import (
    ENGINES,
    Call,
    CompiledSegment,
    Engine,
    EngineOptions,
    FileEngine,
    Program,
    register_engine,
)

__all__ = [
    "ENGINES",
    "Call",
    "CompiledSegment",
    "Engine",
    "EngineOptions",
    "FileEngine",
    "Program",
    "onnxruntime_engine",
    "openvino_engine",
    "register_engine",
    "torch_engine",
]
