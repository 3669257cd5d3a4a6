"""What people write into a policy's config, checked: every refusal is one sentence."""

import math
from collections.abc import Sequence

from offramp.errors import OfframpError


def numbers(name: str, key: str, values: Sequence[float]) -> tuple[float, ...]:
    """A list of numbers, one per exit."""
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise OfframpError(f"policy {name!r}: {key} must be a list of numbers") from None
    if not found or any(math.isnan(value) for value in found):
        raise OfframpError(f"policy {name!r}: {key} must be numbers, one per exit")
    return found


def whole(name: str, key: str, value: int, *, least: int = 1) -> int:
    """A whole number that is not below ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OfframpError(
            f"policy {name!r}: {key} = {value!r}, but it must be a whole number ≥ {least}"
        )
    return value


def number(name: str, key: str, value: float, *, least: float) -> float:
    """A finite number that is not below ``least``."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or value < least:
        raise OfframpError(
            f"policy {name!r}: {key} = {value!r}, but it must be a number ≥ {least:g}"
        )
    return float(value)
