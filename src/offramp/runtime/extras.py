"""Optional libraries: imported when an engine needs them, with a sentence when they are missing."""

import sys
from importlib import import_module
from typing import Any

from offramp.errors import OfframpError

# OpenVINO and NNCF report every conversion to their makers, each time from a fork of the whole
# process that waits for the network. They do without where this cannot be imported.
TELEMETRY = "openvino_telemetry"


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional library, or say which ``pip install offramp[…]`` brings it."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault(TELEMETRY, None)
    try:
        return import_module(module)
    except ImportError as error:
        raise OfframpError(
            f"{purpose} needs {module}, which is not installed: pip install 'offramp[{extra}]'"
        ) from error
