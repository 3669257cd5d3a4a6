"""Let torchvision be imported beside a torch build it was not compiled for.

A CUDA build of torchvision next to a CPU build of torch cannot load its extension library. It
swallows that failure, then registers fake kernels for two operators that were never defined, and
the import fails with "operator torchvision::nms does not exist"; timm and transformers fall over
the same stone. `ensure` defines the two schemas and imports again. On a healthy install it only
imports torchvision. Detection operators and torchvision's own image decoders stay unavailable.
"""

import importlib
import sys

from torch import library

_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
_library: library.Library | None = None  # the definitions live as long as this object


def ensure() -> None:
    """Import torchvision, defining its missing operators if that is what stops it."""
    global _library
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _library = library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
