"""Cost tables: what running up to an exit costs, with the unit in the table.

The body is cut at *every* exit of the model, active or not, so that one table serves every choice
of active exits: a switched-off exit saves exactly its head.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from offramp.errors import OfframpError
from offramp.files import read_model, write_json


class CostTable(BaseModel):
    """Cost of a chain with K exits for one sample, per piece between exits.

    Args:
        unit: what is counted, for example ``"MACs"``, ``"ms"`` or ``"blocks"``.
        body: (K,) cost of the steps since the previous exit; the first includes the embedding.
        head: (K,) cost of each exit's head; the last is the backbone's own norm and classifier.
        full: cost of the unmodified backbone, against which every saving is stated.
        meta: what else belongs to the numbers (batch size, image size, hardware, …).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str
    body: tuple[float, ...] = Field(min_length=1)
    head: tuple[float, ...] = Field(min_length=1)
    full: float
    meta: dict[str, Any] = {}

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(self.body) != len(self.head):
            raise ValueError(
                f"body has {len(self.body)} entries but head {len(self.head)}; one per exit each"
            )
        if any(not math.isfinite(value) or value < 0 for value in (*self.body, *self.head)):
            raise ValueError("costs must be finite and not negative")
        if not (math.isfinite(self.full) and self.full > 0):
            raise ValueError("full must be finite and positive")
        return self

    @property
    def num_exits(self) -> int:
        return len(self.body)

    def leave_cost(self, active: Sequence[int] | None = None) -> tuple[float, ...]:
        """Cost of a sample that leaves at exit k, for every k: (K,).

        It pays the body up to k and the head of every active early exit up to k; the last exit
        always pays its own head. ``active`` indexes early exits (all of them when ``None``).
        """
        last = self.num_exits - 1
        on = np.zeros(self.num_exits)
        chosen = list(range(last) if active is None else active)
        wrong = [k for k in chosen if not 0 <= k <= last]
        if wrong:
            raise OfframpError(
                f"active exit {wrong[0]} does not exist: exits are numbered 0…{last}"
            )
        on[chosen] = 1.0
        on[last] = 1.0
        paid = np.cumsum(self.body) + np.cumsum(np.asarray(self.head) * on)
        return tuple(paid.tolist())

    def mean_cost(self, exit_share: Sequence[float], active: Sequence[int] | None = None) -> float:
        """Mean cost of a sample when the share ``exit_share[k]`` leaves at exit k."""
        if len(exit_share) != self.num_exits:
            raise OfframpError(
                f"{len(exit_share)} exit shares for a cost table of {self.num_exits} exits"
            )
        return float(np.dot(exit_share, self.leave_cost(active)))

    def speedup(self, exit_share: Sequence[float], active: Sequence[int] | None = None) -> float:
        """Cost of the unmodified backbone over the mean cost."""
        return self.full / self.mean_cost(exit_share, active)

    def save(self, path: Path | str) -> None:
        """Write the table as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a saved table, or raise `OfframpError` naming file and key."""
        return read_model(cls, path, "cost table")
