"""How long segments take of late: machines slow down and recover while a table stays what it is."""

from collections import deque

RECENT = 128  # segments that are remembered: some fifteen requests
ENOUGH = 32
QUANTILE = 0.95


class Pace:
    """Time of the last segments over what was expected of them.

    Attributes:
        factor: what expected times are to be multiplied with: nearly the slowest of the last
            segments decides, 1 until there are enough.
    """

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=RECENT)
        self.factor = 1.0

    def note(self, took_ms: float, expected_ms: float) -> None:
        """A segment is over."""
        self._ratios.append(took_ms / expected_ms)

    def settle(self) -> None:
        """Judge by what has been noted; between requests, as it takes a moment."""
        if len(self._ratios) >= ENOUGH:
            self.factor = sorted(self._ratios)[int(QUANTILE * len(self._ratios))]
