"""OpenVINO on CPU: float32, bfloat16, or int8 by NNCF."""

from collections.abc import Sequence
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
from offramp.runtime.exporting import to_openvino
from offramp.runtime.extras import require
from offramp.runtime.parts import Layout, Part

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


@register_engine("openvino")
class OpenVINOEngine(FileEngine):
    """OpenVINO on CPU; float32, bfloat16 or int8.

    One request per segment. What goes from segment to segment stays in OpenVINO's own tensors
    while nobody leaves, and at bfloat16 it is passed on as bfloat16: conversions at every boundary
    would cost up to a tenth of the time.
    """

    name = "openvino"
    libraries = ("openvino",)
    precisions = ("float32", "bfloat16", "int8")
    suffix = ".xml"

    def write(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        ov = require("openvino", "openvino", "the OpenVINO engine")
        files = []
        for i, part in enumerate(parts):
            model = to_openvino(part)
            if self.precision == "bfloat16":
                model = _narrow_edges(model, part.layout)
            file = folder / f"segment-{i}.xml"
            ov.save_model(model, file, compress_to_fp16=False)
            files.append(file)
        return files

    def open(self, files: Sequence[Path], layouts: Sequence[Layout]) -> Program:
        ov = require("openvino", "openvino", "the OpenVINO engine")
        core = ov.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.options.num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        segments = []
        for file, layout in zip(files, layouts, strict=True):
            try:
                model = core.read_model(file)
                if self.options.batch_size is not None:
                    _fix_batch(model, self.options.batch_size)
                compiled = core.compile_model(model, "CPU", settings)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise OfframpError(f"{file.name}: OpenVINO cannot run it: {reason}") from error
            segments.append(CompiledSegment(layout, OpenVINOCall(compiled, layout)))
        return Program(segments, torch.device("cpu"), torch.float32, self.precision, borrowed=True)


class OpenVINOCall:
    """One compiled segment: torch tensors in and out, without copies.

    The flow it returns is a view of OpenVINO's own output tensors.
    """

    def __init__(self, compiled: Any, layout: Layout) -> None:
        self._request = compiled.create_infer_request()
        self._order = [_port(compiled.outputs, name, i) for i, name in enumerate(layout.outputs)]
        self._width = len(layout.flow)
        self._ov = require("openvino", "openvino", "the OpenVINO engine")

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        request = self._request
        for i, tensor in enumerate(inputs):
            request.set_input_tensor(i, self._wrap(tensor))
        request.infer()
        returned = [self._unwrap(request.get_output_tensor(i)) for i in self._order]
        says = (tensor.clone() for tensor in returned[self._width :])
        return (*returned[: self._width], *says)

    def _wrap(self, tensor: Tensor) -> Any:
        tensor = tensor.contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy has none: pass the bits
            bits = tensor.view(torch.int16).numpy()
            return self._ov.Tensor(bits, self._ov.Shape(list(tensor.shape)), self._ov.Type.bf16)
        return self._ov.Tensor(tensor.numpy(), shared_memory=True)

    def _unwrap(self, tensor: Any) -> Tensor:
        if tensor.element_type == self._ov.Type.bf16:
            return torch.from_numpy(tensor.data.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(tensor.data)


def _port(ports: Sequence[Any], name: str, position: int) -> int:
    """Where the output ``name`` is; an output that is another one too may have kept one name."""
    named = [i for i, port in enumerate(ports) if name in port.get_names()]
    return named[0] if named else position


def _narrow_edges(model: Any, layout: Layout) -> Any:
    """Pass what flows between segments as bfloat16; images and answers stay float32."""
    ov = require("openvino", "openvino", "the OpenVINO engine")
    edges = ov.preprocess.PrePostProcessor(model)
    for i, port in enumerate(model.inputs):
        if layout.inputs[i] != "images" and port.get_element_type() == ov.Type.f32:
            edges.input(i).tensor().set_element_type(ov.Type.bf16)
    for i, port in enumerate(model.outputs):
        if i < len(layout.flow) and port.get_element_type() == ov.Type.f32:
            edges.output(i).tensor().set_element_type(ov.Type.bf16)
    return edges.build()


def _fix_batch(model: Any, batch: int) -> None:
    ov = require("openvino", "openvino", "the OpenVINO engine")
    model.reshape(
        {port: ov.PartialShape([batch, *list(port.partial_shape)[1:]]) for port in model.inputs}
    )
