"""Runtime: segments executed fast, so that saved arithmetic is saved time."""

from offramp.runtime.batching import BatchPlan, BatchTimes
from offramp.runtime.benchmark import BatchBench, BenchResult, bench
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines import ENGINES, Engine, EngineOptions, register_engine
from offramp.runtime.latency import latency_table
from offramp.runtime.prediction import Prediction
from offramp.runtime.runner import Runner

__all__ = [
    "ENGINES",
    "BatchBench",
    "BatchPlan",
    "BatchTimes",
    "BenchResult",
    "Engine",
    "EngineOptions",
    "Prediction",
    "Runner",
    "bench",
    "compile_runner",
    "latency_table",
    "register_engine",
]
