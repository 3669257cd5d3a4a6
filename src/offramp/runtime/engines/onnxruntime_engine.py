"""ONNX Runtime on CPU: float32, or int8 by its own quantiser."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.engines.engine import (
    CompiledSegment,
    FileEngine,
    Program,
    register_engine,
)
from offramp.runtime.engines.onnxruntime_int8 import check_images, quantise
from offramp.runtime.exporting import write_onnx
from offramp.runtime.extras import require
from offramp.runtime.parts import Layout, Part

TYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}


@register_engine("onnxruntime")
class OnnxRuntimeEngine(FileEngine):
    """ONNX Runtime on CPU; float32 or int8.

    One session per segment. Their threads spin while they run, which is worth a third of the time
    at batch 1, and stop when a run ends: those of an idle session would fight with the next one's.
    """

    name = "onnxruntime"
    libraries = ("onnxruntime",)
    precisions = ("float32", "int8")
    suffix = ".onnx"

    def write(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        if self.precision == "int8":
            check_images(self.options.calibration)
        files = []
        for i, part in enumerate(parts):
            files.append(folder / f"segment-{i}.onnx")
            write_onnx(part, files[-1])
        if self.precision == "int8":
            quantise(files, parts, self.options.calibration)
        return files

    def open(self, files: Sequence[Path], layouts: Sequence[Layout]) -> Program:
        ort = require("onnxruntime", "onnxruntime", "the ONNX Runtime engine")
        _share_memory(ort)
        segments = []
        for file, layout in zip(files, layouts, strict=True):
            try:
                session = ort.InferenceSession(
                    str(file), self._settings(ort), providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                reason = str(error).strip().splitlines()[0]
                raise OfframpError(f"{file.name}: ONNX Runtime cannot run it: {reason}") from error
            segments.append(CompiledSegment(layout, OnnxRuntimeCall(session, layout)))
        return Program(
            segments,
            torch.device("cpu"),
            torch.float32,
            self.precision,
            borrowed=True,
            own_threads=True,
        )

    def _settings(self, ort: Any) -> Any:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        settings.add_session_config_entry("session.use_env_allocators", "1")
        if self.options.batch_size == 1:  # larger batches shrink on the way
            settings.add_free_dimension_override_by_name("batch", 1)
        else:
            settings.enable_mem_pattern = False  # a plan per batch size, and sizes keep changing
        return settings


@cache
def _share_memory(ort: Any) -> None:
    """One pool of working memory for all sessions that ask for it, registered once per process.

    Segments never run at the same time; with a pool each they would hold several times the memory
    of the model in one piece (DeiT-tiny at 112 px, batch 32: 94 MiB instead of 36).
    """
    info = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    with suppress(RuntimeError):  # somebody else has: sessions then share theirs
        ort.create_and_register_allocator(info, None)


NOTHING = torch.zeros(1)
"""Where tensors without elements are said to lie."""


class OnnxRuntimeCall:
    """One session: torch tensors in and out, without copies.

    The flow it returns lies in buffers of its own, as large as the largest batch so far. What goes
    in and out is bound to the session by address, and again only when an address or the batch
    changes: at batch 1 a segment then costs some microseconds more than its arithmetic.
    """

    def __init__(self, session: Any, layout: Layout) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs = layout.inputs
        ports = {port.name: port for port in session.get_outputs()}
        self._outputs = {name: _empty(ports[name], 1) for name in layout.outputs}
        self._width = len(layout.flow)
        self._bound: dict[str, int] = {}
        self._returned: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        held = [tensor.contiguous() for tensor in inputs]  # alive until the session is done
        batch = len(held[0])
        if not self._returned or len(self._returned[0]) != batch:
            self._resize(batch)
        for name, tensor in zip(self._inputs, held, strict=True):
            if self._bound.get(name) != tensor.data_ptr():
                self._bound[name] = _bind(self._binding.bind_input, name, tensor)
        self._session.run_with_iobinding(self._binding)
        flow, says = self._returned[: self._width], self._returned[self._width :]
        return (*flow, *(tensor.clone() for tensor in says))

    def _resize(self, batch: int) -> None:
        self._bound = {}
        self._returned = []
        for name, buffer in self._outputs.items():
            if len(buffer) < batch:
                buffer = self._outputs[name] = buffer.new_empty(batch, *buffer.shape[1:])
            self._returned.append(buffer[:batch])
            _bind(self._binding.bind_output, name, self._returned[-1])


def _bind(bind: Any, name: str, tensor: Tensor) -> int:
    pointer = tensor.data_ptr()  # 0 where there is nothing, which ONNX Runtime takes for a mistake
    place = pointer or NOTHING.data_ptr()
    bind(name, "cpu", 0, TYPES[tensor.dtype], tuple(tensor.shape), place)
    return pointer


def _empty(port: Any, batch: int) -> Tensor:
    """A buffer for an output, whose dimensions are all known but the first."""
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": torch.float32, "double": torch.float64}.get(kind) or getattr(torch, kind)
    return torch.empty(batch, *port.shape[1:], dtype=dtype)
