"""How long segments take of late: machines slow down and recover while a table stays what it is."""

from collections import deque

RECENT = 64  # segments that are remembered
ENOUGH = 16
START = 1.25  # the margin before so many were seen
QUANTILE = 0.98  # of the ratios: the margin afterwards


class Pace:
    """Time of the last segments over what was expected of them.

    Attributes:
        factor: what expected times are to be multiplied with: nearly the slowest of the last
            segments decides.
    """

    def __init__(self, factor: float = START) -> None:
        self._ratios: deque[float] = deque(maxlen=RECENT)
        self.factor = factor

    def note(self, took_ms: float, expected_ms: float) -> None:
        """A segment is over."""
        self._ratios.append(took_ms / expected_ms)

    def settle(self) -> None:
        """Judge by what has been noted; between requests, as it takes a moment."""
        if len(self._ratios) >= ENOUGH:
            self.factor = sorted(self._ratios)[int(QUANTILE * len(self._ratios))]
