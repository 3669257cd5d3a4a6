"""PyTorch compiled: torch.compile with Inductor, one graph per segment and batch size."""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import OfframpError
from offramp.runtime.engines.engine import CompiledSegment, Engine, Program, register_engine
from offramp.runtime.exporting import refusal
from offramp.runtime.parts import Part
from offramp.runtime.pieces import covering, in_pieces, powers_of_two

LARGEST = 256
"""Samples of the largest graph; more are run in several calls."""


@register_engine("torch-compile")
class CompileEngine(Engine):
    """torch.compile (Inductor), on the device the model is on.

    Shapes are fixed: batches are filled up to a power of two. A graph is compiled when its segment
    and size first come, which takes seconds, and never again.
    """

    name = "torch-compile"
    precisions = ("model", "float32", "bfloat16")

    @property
    def device(self) -> torch.device | None:
        return self.options.device

    @property
    def part_dtype(self) -> torch.dtype | None:
        return None if self.precision == "model" else getattr(torch, self.precision)

    def prepare(self, parts: Sequence[Part]) -> Program:
        images = parts[0].example[0]
        if images.device.type == "cpu":
            _require_compiler()
        sizes = powers_of_two(self.options.batch_size or LARGEST)
        return Program(
            [CompiledSegment(part.layout, CompiledPart(part, sizes)) for part in parts],
            images.device,
            images.dtype,
            precision=str(images.dtype).removeprefix("torch."),
            sizes=sizes,
        )


class CompiledPart:
    """One part and its graphs by batch size; takes any batch."""

    def __init__(self, part: Part, sizes: Sequence[int]) -> None:
        self._part, self._sizes = part, sizes
        self._graphs: dict[int, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return in_pieces(self._exact, inputs, covering(len(inputs[0]), self._sizes))

    def _exact(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        size = len(inputs[0])
        plain = (_plain(tensor) for tensor in inputs)
        if size in self._graphs:
            return self._graphs[size](self._part, *plain)
        graph: Any = torch.compile(
            _alone(_run), fullgraph=True, dynamic=False, options=_trusting() or None
        )
        try:
            returned = graph(self._part, *plain)
        except Exception as error:
            raise refusal(self._part, f"torch.compile (batch {size})", error) from error
        self._graphs[size] = graph
        return returned


def _run(part: nn.Module, *flow: Tensor) -> tuple[Tensor, ...]:
    return part(*flow)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy with a code object of its own.

    Dynamo files graphs by code object, looks through all of them at every call, and falls back to
    eager execution after eight: segments and sizes must not share one.
    """
    return FunctionType(function.__code__.replace(), function.__globals__)


def _trusting() -> dict[str, Any]:
    """Do not look at every module again at each call, which takes 4 % of DeiT-tiny at batch 1.

    Parts are copies that nobody changes; torch before 2.7 cannot be told so.
    """
    skip = getattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe", None)
    return {} if skip is None else {"guard_filter_fn": skip}


def _plain(tensor: Tensor) -> Tensor:
    """The same memory as an inference tensor with the strides of its shape.

    Graphs are also bound to strides, even of axes of length 1, and to the kind of tensor.
    """
    tensor = tensor.contiguous()
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    return tensor.new_empty(0).set_(storage, offset, tensor.shape)  # type: ignore[call-overload]


def _require_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise OfframpError(
            "engine 'torch-compile' needs a C++ compiler, and none is found here: install g++ or "
            "clang++ (or name one in the environment variable CXX), or use engine 'torch'"
        ) from error
