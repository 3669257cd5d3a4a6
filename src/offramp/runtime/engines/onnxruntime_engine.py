"""ONNX Runtime on CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.engines.engine import (
    CompiledSegment,
    FileEngine,
    Program,
    register_engine,
)
from offramp.runtime.exporting import write_onnx
from offramp.runtime.extras import require
from offramp.runtime.parts import Layout, Part


@register_engine("onnxruntime")
class OnnxRuntimeEngine(FileEngine):
    """ONNX Runtime on CPU."""

    name = "onnxruntime"
    libraries = ("onnxruntime",)
    suffix = ".onnx"

    def write(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        files = []
        for i, part in enumerate(parts):
            files.append(folder / f"segment-{i}.onnx")
            write_onnx(part, files[-1])
        return files

    def open(self, files: Sequence[Path], layouts: Sequence[Layout]) -> Program:
        ort = require("onnxruntime", "onnxruntime", "the ONNX Runtime engine")
        segments = []
        for file, layout in zip(files, layouts, strict=True):
            settings = ort.SessionOptions()
            settings.intra_op_num_threads = self.options.num_threads
            settings.inter_op_num_threads = 1
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                session = ort.InferenceSession(
                    str(file), settings, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                reason = str(error).strip().splitlines()[0]
                raise OfframpError(f"{file.name}: ONNX Runtime cannot run it: {reason}") from error
            segments.append(CompiledSegment(layout, OnnxRuntimeCall(session, layout)))
        return Program(segments, torch.device("cpu"), torch.float32, self.precision)


class OnnxRuntimeCall:
    """One session: torch tensors in and out; inputs are shared with it, outputs are new."""

    def __init__(self, session: Any, layout: Layout) -> None:
        self._session = session
        self._inputs, self._outputs = layout.inputs, list(layout.outputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        feed = {
            name: tensor.contiguous().numpy()
            for name, tensor in zip(self._inputs, inputs, strict=True)
        }
        return tuple(torch.from_numpy(array) for array in self._session.run(self._outputs, feed))
