"""Optional libraries: imported when an engine needs them, with a sentence when they are missing."""

from importlib import import_module
from typing import Any

from offramp.errors import OfframpError


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional library, or say which ``pip install offramp[…]`` brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise OfframpError(
            f"{purpose} needs {module}, which is not installed: pip install 'offramp[{extra}]'"
        ) from error
