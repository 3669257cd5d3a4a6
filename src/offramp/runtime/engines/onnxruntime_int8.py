"""int8 for ONNX Runtime: its static quantiser, one segment after the other."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.runtime.extras import require
from offramp.runtime.parts import Part, fresh_memory

BATCH = 16
NEEDS_IMAGES = (
    "int8 needs images to read value ranges from: give calibration=, a few hundred preprocessed "
    "images (N, 3, H, W) of the calibration split"
)


def check_images(images: Tensor | None) -> Tensor:
    """The images, or `OfframpError` when there are none."""
    if images is None or not len(images):
        raise OfframpError(NEEDS_IMAGES)
    return images


def quantise(files: Sequence[Path], parts: Sequence[Part], images: Tensor | None) -> None:
    """Quantise exported segments in place, on the tensors that images bring to them.

    Products with weights become int8 (weights per channel, activations by their range over the
    images); attention's own products, norms, softmax, classifiers and scores stay float32. Ranges
    are fixed beforehand: read from the batch at hand, as dynamic quantisation does, they would make
    an answer depend on who else is in the batch.

    Args:
        files: the parts as ONNX.
        images: (N, 3, H, W) of the calibration split.
    """
    quantization = require("onnxruntime.quantization", "onnxruntime", "int8 on ONNX Runtime")
    flows: list[tuple[Tensor, ...]] = [
        (batch, *fresh_memory(parts[0], len(batch)))
        for batch in check_images(images).float().split(BATCH)
    ]
    for file, part in zip(files, parts, strict=True):
        with _quiet():
            quantization.quantize_static(
                str(file),
                str(file),
                _Feeds(part.layout.inputs, flows),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["MatMul"],
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                extra_options={
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],
                },
            )
        with torch.no_grad():
            width = len(part.layout.flow)
            flows = [part(*flow)[:width] for flow in flows]


class _Feeds:
    """Batches of tensors as the quantiser's data reader hands them out."""

    def __init__(self, names: Sequence[str], flows: Sequence[tuple[Tensor, ...]]) -> None:
        self._feeds = iter(
            [
                {name: tensor.numpy() for name, tensor in zip(names, flow, strict=True)}
                for flow in flows
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises at length."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
