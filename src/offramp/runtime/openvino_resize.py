"""Antialiased resizing in OpenVINO, whose reader of torch's graphs does not know it."""

from typing import Any

import numpy as np

from offramp.runtime.extras import require


def extensions() -> list[Any]:
    """What `openvino.convert_model` takes as ``extension``."""
    frontend = require("openvino.frontend.pytorch", "openvino", "the OpenVINO engine")
    return [frontend.ConversionExtension("aten._upsample_bilinear2d_aa.default", resize)]


def resize(context: Any) -> list[Any]:
    """``interpolate(x, size, mode="bilinear", antialias=True)``, which is how Pillow resizes.

    Args:
        context: the node as OpenVINO reads it: x (B, C, H, W), and the size as a constant.
    """
    ops = require("openvino.opset11", "openvino", "the OpenVINO engine")
    size, corners = (context.get_values_from_const_input(i) for i in (1, 2))
    if size is None or corners:
        raise NotImplementedError("antialiased resizing by a factor, or with aligned corners")
    resized = ops.interpolate(
        context.get_input(0),
        ops.constant(np.array(size, dtype=np.int64)),
        "bilinear_pillow",
        "sizes",
        pads_begin=[0, 0, 0, 0],
        pads_end=[0, 0, 0, 0],
        coordinate_transformation_mode="half_pixel",
        axes=ops.constant(np.array([2, 3], dtype=np.int64)),
    )
    return [resized.output(0)]
