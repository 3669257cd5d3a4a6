"""OpenVINO on CPU: float32, bfloat16, or int8 by NNCF."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.engines.engine import (
    Call,
    CompiledSegment,
    FileEngine,
    Program,
    register_engine,
)
from offramp.runtime.engines.openvino_int8 import quantise
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
        models = [to_openvino(part) for part in parts]
        if self.precision == "int8":
            models = quantise(models, parts, self.options.calibration)
        files = []
        for i, (part, model) in enumerate(zip(parts, models, strict=True)):
            if self.precision == "bfloat16":
                model = _narrow_edges(model, part.layout)
            file = folder / f"segment-{i}.xml"
            ov.save_model(model, file, compress_to_fp16=False)
            files.append(file)
        return files

    def open(self, files: Sequence[Path], layouts: Sequence[Layout]) -> Program:
        ov = require("openvino", "openvino", "the OpenVINO engine")
        core, largest = ov.Core(), self.options.batch_size
        segments = []
        for file, layout in zip(files, layouts, strict=True):
            model = _accepted(file, core.read_model, file)
            call: Call = (
                OpenVINOCall(self._compiled(core, model, file), layout)
                if largest is None
                else FixedShapes(partial(self._fixed, core, model, file, layout), largest)
            )
            segments.append(CompiledSegment(layout, call))
        return Program(
            segments,
            torch.device("cpu"),
            torch.float32,
            self.precision,
            borrowed=True,
            own_threads=True,
        )

    def _compiled(self, core: Any, model: Any, file: Path) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return _accepted(file, core.compile_model, model, "CPU", settings)

    def _fixed(
        self, core: Any, model: Any, file: Path, layout: Layout, batch: int
    ) -> "OpenVINOCall":
        copied = model.clone()
        _fix_batch(copied, batch)
        return OpenVINOCall(self._compiled(core, copied, file), layout)


def _accepted(file: Path, do: Callable[..., Any], *arguments: Any) -> Any:
    """What OpenVINO makes of a file, or one sentence that names it."""
    try:
        return do(*arguments)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise OfframpError(f"{file.name}: OpenVINO cannot run it: {reason}") from error


class FixedShapes:
    """One segment with a graph for each batch size, made when that size first comes.

    With one graph for all sizes OpenVINO prepares its layers again whenever the size changes, as
    it does behind an exit: 0.1 to 0.2 ms per segment of DeiT-tiny, a fifth of its time at batch 8.
    Each graph holds its own copy of the segment's weights.

    Args:
        make: batch size → call.
        largest: batches above it are refused.
    """

    def __init__(self, make: Callable[[int], "OpenVINOCall"], largest: int) -> None:
        self._make, self._largest = make, largest
        self._calls: dict[int, OpenVINOCall] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch = len(inputs[0])
        if batch not in self._calls:
            if batch > self._largest:
                raise OfframpError(
                    f"a batch of {batch}, but this runner was compiled for batches of at most "
                    f"{self._largest} (compile with batch_size={batch} or without)"
                )
            self._calls[batch] = self._make(batch)
        return self._calls[batch](*inputs)


class OpenVINOCall:
    """One compiled segment: torch tensors in and out, without copies.

    The flow it returns lies in buffers of its own, as large as the largest batch so far. Buffers
    are set again only when the batch changes, inputs only when they lie elsewhere: at batch 1
    every microsecond between two segments counts.
    """

    def __init__(self, compiled: Any, layout: Layout) -> None:
        self._ov = require("openvino", "openvino", "the OpenVINO engine")
        self._request = compiled.create_infer_request()
        self._narrow = [port.get_element_type() == self._ov.Type.bf16 for port in compiled.inputs]
        ports = [_port(compiled.outputs, name, i) for i, name in enumerate(layout.outputs)]
        self._ports = [position for position, _ in ports]
        self._buffers = [_buffer(port, self._ov) for _, port in ports]
        self._width = len(layout.flow)
        self._given = [0] * len(layout.inputs)
        self._batch = 0
        self._returned: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if len(inputs[0]) != self._batch:
            self._resize(len(inputs[0]))
        held = []  # alive until the request is done
        for i, tensor in enumerate(inputs):
            held.append((tensor.bfloat16() if self._narrow[i] else tensor).contiguous())
            if held[i].data_ptr() != self._given[i]:
                self._given[i] = held[i].data_ptr()
                self._request.set_input_tensor(i, _wrap(held[i], self._ov))
        self._request.infer()
        flow, says = self._returned[: self._width], self._returned[self._width :]
        return (*flow, *(tensor.clone() for tensor in says))

    def _resize(self, batch: int) -> None:
        self._batch, self._given, self._returned = batch, [0] * len(self._given), []
        for i, (position, buffer) in enumerate(zip(self._ports, self._buffers, strict=True)):
            if len(buffer) < batch:
                buffer = self._buffers[i] = buffer.new_empty(batch, *buffer.shape[1:])
            self._returned.append(buffer[:batch])
            self._request.set_output_tensor(position, _wrap(self._returned[i], self._ov))


def _wrap(tensor: Tensor, ov: Any) -> Any:
    """An OpenVINO tensor on the memory of a contiguous torch tensor."""
    if tensor.dtype == torch.bfloat16:  # numpy has none: pass the bits
        bits = tensor.view(torch.int16).numpy()
        return ov.Tensor(bits, ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def _buffer(port: Any, ov: Any) -> Tensor:
    """Room for one sample of an output, whose dimensions are all known but the first."""
    kinds = {
        ov.Type.f32: torch.float32,
        ov.Type.bf16: torch.bfloat16,
        ov.Type.i64: torch.int64,
        ov.Type.i32: torch.int32,
        ov.Type.boolean: torch.bool,
        ov.Type.u8: torch.uint8,
    }
    shape = [dimension.get_length() for dimension in list(port.partial_shape)[1:]]
    return torch.empty(1, *shape, dtype=kinds[port.get_element_type()])


def _port(ports: Sequence[Any], name: str, position: int) -> tuple[int, Any]:
    """The output ``name``; outputs that are one and the same tensor have kept only one name."""
    named = [i for i, port in enumerate(ports) if name in port.get_names()]
    found = position if position in named or not named else named[0]
    return found, ports[found]


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
