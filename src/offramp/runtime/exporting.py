"""Parts as graphs: torch.export with a free batch axis, then ONNX or OpenVINO."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offramp.errors import OfframpError
from offramp.runtime.extras import require
from offramp.runtime.onnx_attention import translations
from offramp.runtime.openvino_resize import extensions
from offramp.runtime.parts import Part

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OPSET = 20


def trace(part: Part) -> "ExportedProgram":
    """The graph of a part, for any batch size.

    Raises:
        OfframpError: when the part cannot be traced, naming the segment.
    """
    free = (tuple({0: torch.export.Dim.DYNAMIC} for _ in part.example),)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(part, part.example, dynamic_shapes=free)
    except Exception as error:
        raise refusal(part, "torch.export", error) from error


def write_onnx(part: Part, file: Path, *, opset: int = OPSET) -> None:
    """Write a part as ONNX, inputs and outputs named by its layout, the batch axis ``batch``."""
    require("onnxscript", "onnxruntime", "ONNX export")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(
                trace(part),
                dynamo=True,
                input_names=list(part.layout.inputs),
                output_names=list(part.layout.outputs),
                opset_version=opset,
                custom_translation_table=translations(),
                verbose=False,
            )
    except OfframpError:
        raise
    except Exception as error:
        raise refusal(part, "ONNX", error) from error
    assert graph is not None
    _tidy(graph.model.graph)
    graph.save(file)


def _tidy(graph: Any) -> None:
    """Name the batch axis, and drop what the exporter notes: source lines, inferred shapes."""
    ir = require("onnx_ir", "onnxruntime", "ONNX export")
    ports = (*graph.inputs, *graph.outputs)
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*ports, *inner, *graph.initializers.values()):
        value.metadata_props.clear()
        value.shape = ir.Shape(["batch", *value.shape[1:]]) if value in ports else None
        value.type = value.type if value in ports else None
    for owner in (graph, *graph.all_nodes()):
        owner.metadata_props.clear()


def to_openvino(part: Part) -> Any:
    """A part as an OpenVINO model, tensors named by its layout, shapes bound but for the batch."""
    ov = require("openvino", "openvino", "the OpenVINO engine")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ov.convert_model(trace(part), extension=extensions())
    except OfframpError:
        raise
    except Exception as error:
        raise refusal(part, "OpenVINO", error) from error
    model.reshape(
        {
            port: ov.PartialShape([-1, *tensor.shape[1:]])
            for port, tensor in zip(model.inputs, part.example, strict=True)
        }
    )
    for port, name in zip(model.inputs, part.layout.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, part.layout.outputs, strict=True):
        port.get_tensor().set_names({name})
    return model


def refusal(part: Part, target: str, error: Exception) -> OfframpError:
    """The sentence for a part that ``target`` cannot take, made from what went wrong."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # exporters wrap what went wrong in advice
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return OfframpError(
        f"the segment that ends in exit {part.layout.exit_index} cannot be expressed in {target}: "
        f"{type(error).__name__}: {first[:300]}"
    )
