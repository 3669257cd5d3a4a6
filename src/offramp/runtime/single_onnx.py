"""One ONNX file that exits early by itself: nested ``If``, for one image at a time, in any runtime.

    segment 0 → If(stop 0) then answer 0 else (segment 1 → If(stop 1) then answer 1 else (…))

A runtime computes only the branch it takes, so what lies behind the exit that answers never runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.extras import require
from offramp.runtime.parts import Layout

SHARED = 1024
"""A weight of at least so many bytes that several segments use is stored once."""


class Outputs(NamedTuple):
    """What a branch ends in: names of answer (1, classes), exit (1,) and score (1,)."""

    answer: str = "answer"
    exit: str = "exit"
    score: str = "score"


def write_single(
    files: Sequence[Path],
    layouts: Sequence[Layout],
    out: Path,
    *,
    memory: Sequence[Tensor] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Build the whole model for batch 1 from its exported segments.

    ``images (1, C, H, W)`` → ``answer (1, classes)``; ``exit (1,)`` int64, among all exits of the
    model; ``score (1,)``, the number the decision hung on, NaN at the last exit, where nothing is
    decided. Weights lie in the branch that uses them: in the main graph they would be out of reach
    of ONNX Runtime's fusions, which costs DeiT-tiny about 7 %.

    Args:
        files: segments as ONNX, in order.
        layouts: theirs, built with a policy.
        out: file to write.
        memory: the policy's fresh memory for one sample, which becomes part of the graph.
        metadata: texts for the file's metadata, such as preprocessing and class names as JSON.

    Raises:
        OfframpError: for a missing library, a file that is not ONNX, or more than 2 GB.
    """
    onnx = require("onnx", "onnxruntime", "writing a single ONNX file")
    models = [_read(onnx, file) for file in files]
    graphs = [
        onnx.compose.add_prefix_graph(model.graph, _prefix(i), inplace=True)
        for i, model in enumerate(models)
    ]
    _connect(graphs, {**_inputs(layouts), **_twins(graphs)})
    whole = None
    for i in reversed(range(len(graphs))):
        whole = _branch(onnx, graphs[i], layouts[i], i, whole)
    assert whole is not None
    images = onnx.ValueInfoProto()
    images.CopyFrom(graphs[0].input[0])
    images.name = "images"
    images.type.tensor_type.shape.dim[0].dim_value = 1
    whole.input.append(images)
    for k, tensor in enumerate(memory):
        whole.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), f"memory{k}"))
    model = onnx.helper.make_model(
        whole,
        producer_name="offramp",
        opset_imports=_opsets(onnx, models),
        ir_version=max(model.ir_version for model in models),
    )
    onnx.helper.set_model_props(model, dict(metadata or {}))
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, out)
    except ValueError as error:  # protobuf's limit
        raise OfframpError(f"{out.name}: one ONNX file holds at most 2 GB: {error}") from error


def _read(onnx: Any, file: Path) -> Any:
    try:
        return onnx.load(file)
    except Exception as error:
        raise OfframpError(f"{file}: not an ONNX file ({type(error).__name__})") from error


def _prefix(i: int) -> str:
    return f"segment{i}/"


def _inputs(layouts: Sequence[Layout]) -> dict[str, str]:
    """Every segment's inputs, by the name of what comes in."""
    first = {f"{_prefix(0)}{name}": name for name in layouts[0].inputs}
    for i, layout in enumerate(layouts[1:], start=1):
        for name in layout.inputs:
            first[f"{_prefix(i)}{name}"] = f"{_prefix(i - 1)}next_{name}"
    return first


def _twins(graphs: Sequence[Any]) -> dict[str, str]:
    """Weights that an earlier segment stores too, by its name for them: they are taken out.

    Later segments lie inside the branches of earlier ones, so they see what those store.
    """
    stored: dict[tuple[Any, ...], str] = {}
    twins = {}
    for graph in graphs:
        for tensor in list(graph.initializer):
            content = (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
            if len(tensor.raw_data) < SHARED:
                continue
            if content in stored:
                twins[tensor.name] = stored[content]
                graph.initializer.remove(tensor)
            else:
                stored[content] = tensor.name
    return twins


def _connect(graphs: Sequence[Any], names: Mapping[str, str]) -> None:
    for graph in graphs:
        del graph.value_info[:]  # shapes for any batch; this one is for batch 1
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]


def _branch(onnx: Any, graph: Any, layout: Layout, i: int, rest: Any) -> Any:
    """Segment ``i`` and all that may follow as one graph that ends in `Outputs`.

    Args:
        rest: the same for segment ``i + 1``; None behind the last.
    """
    prefix = _prefix(i)
    outputs = Outputs() if i == 0 else Outputs(*(f"{prefix}final_{name}" for name in Outputs()))
    ports = {port.name: port.type.tensor_type for port in graph.output}
    classes = ports[f"{prefix}answer"].shape.dim[1].dim_value
    if rest is None:
        nodes = [*graph.node, *_leaving(onnx, layout, prefix, outputs)]
    else:
        leave = Outputs(*(f"{prefix}leave_{name}" for name in Outputs()))
        onward = [f"{prefix}next_{name}" for name in layout.flow]
        nodes, leavers = _split(graph.node, [f"{prefix}stop", *onward])
        left = onnx.helper.make_graph(
            [*leavers, *_leaving(onnx, layout, prefix, leave)],
            f"exit{layout.exit_index}",
            inputs=[],
            outputs=_ports(onnx, leave, classes),
        )
        nodes.append(
            onnx.helper.make_node(
                "If",
                [f"{prefix}stop"],
                list(outputs),
                name=f"{prefix}leaves",
                then_branch=left,
                else_branch=rest,
            )
        )
    return onnx.helper.make_graph(
        nodes,
        f"segment{i}",
        inputs=[],
        outputs=_ports(onnx, outputs, classes),
        initializer=list(graph.initializer),
    )


def _split(nodes: Sequence[Any], wanted: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """Nodes that ``wanted`` values need, and the others: those serve only samples that leave."""
    needed, kept, others = set(wanted), [], []
    for node in reversed(nodes):  # sorted, so whoever needs a node has been seen
        if needed.isdisjoint(node.output):
            others.append(node)
        else:
            needed.update(node.input)
            kept.append(node)
    return kept[::-1], others[::-1]


def _leaving(onnx: Any, layout: Layout, prefix: str, names: Outputs) -> list[Any]:
    """Nodes that give what a sample takes with it from this segment."""

    def same(name: str, as_name: str) -> Any:
        return onnx.helper.make_node("Identity", [name], [as_name], name=as_name)

    def constant(value: Any, as_name: str) -> Any:
        tensor = onnx.numpy_helper.from_array(value)
        return onnx.helper.make_node("Constant", [], [as_name], name=as_name, value=tensor)

    decided = "score" in layout.says
    return [
        same(f"{prefix}answer", names.answer),
        constant(np.array([layout.exit_index], np.int64), names.exit),
        same(f"{prefix}score", names.score)
        if decided
        else constant(np.array([np.nan], np.float32), names.score),
    ]


def _ports(onnx: Any, names: Outputs, classes: int) -> list[Any]:
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    describe = onnx.helper.make_tensor_value_info
    return [
        describe(names.answer, real, [1, classes]),
        describe(names.exit, whole, [1]),
        describe(names.score, real, [1]),
    ]


def _opsets(onnx: Any, models: Sequence[Any]) -> list[Any]:
    """The operator sets of all segments, which were exported alike."""
    versions = {opset.domain: opset.version for model in models for opset in model.opset_import}
    return [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
