"""Engines: what executes segments."""

from offramp.runtime.engines import (
    compile_engine,
    cuda_graphs_engine,
    onnxruntime_engine,
    openvino_engine,
    torch_engine,
)
from offramp.runtime.engines.engine import (
    ALIASES,
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
    "ALIASES",
    "ENGINES",
    "Call",
    "CompiledSegment",
    "Engine",
    "EngineOptions",
    "FileEngine",
    "Program",
    "compile_engine",
    "cuda_graphs_engine",
    "onnxruntime_engine",
    "openvino_engine",
    "register_engine",
    "torch_engine",
]
