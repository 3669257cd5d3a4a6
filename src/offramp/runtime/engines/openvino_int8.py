"""int8 for OpenVINO: NNCF's post-training quantisation, one segment after the other."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
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


def quantise(models: Sequence[Any], parts: Sequence[Part], images: Tensor | None) -> list[Any]:
    """Quantise each part's OpenVINO model on the tensors that images bring to it.

    Every part sees what the parts before it compute in float32, so the ranges of one do not depend
    on where the others were cut.

    Args:
        models: the parts as OpenVINO models.
        images: (N, 3, H, W) of the calibration split.
    """
    if images is None or not len(images):
        raise OfframpError(NEEDS_IMAGES)
    nncf = require("nncf", "openvino", "int8 on OpenVINO")
    flows = [(batch, *fresh_memory(parts[0], len(batch))) for batch in images.float().split(BATCH)]
    quantised = []
    for model, part in zip(models, parts, strict=True):
        feeds = [[tensor.numpy() for tensor in flow] for flow in flows]
        with _quiet():
            quantised.append(
                nncf.quantize(
                    model,
                    nncf.Dataset(feeds),
                    model_type=nncf.ModelType.TRANSFORMER,
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(feeds),
                )
            )
        with torch.no_grad():
            width = len(part.layout.flow)
            flows = [part(*flow)[:width] for flow in flows]
    return quantised


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF reports its progress at length."""
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
