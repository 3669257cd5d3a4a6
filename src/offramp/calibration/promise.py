"""Promises: what an operating point may be relied on for, and on what that stands."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from offramp.calibration.risk.losses import Loss, loss_named
from offramp.calibration.risk.methods import METHODS


class Promise(BaseModel):
    """What a point promises.

    ``max_drop``: at most ``value`` percentage points of accuracy below the full model, or in
    regression, with the unit MAE, at most so much above the full model's MAE.
    ``max_cost``: at most the share ``value`` of the unmodified model's cost, in ``unit``.
    ``max_latency_ms``: at most ``value`` milliseconds at batch size 1 for half (``p50``) or 95 %
    (``p95``) of the samples.
    ``risk``: the mean of the loss ``unit`` is at most ``value``, as ``method`` proves it.

    Attributes:
        quantile: of a latency.
        delta: probability that the statement about a risk is wrong, over the draw of its samples.
        method: how the risk was bounded.
        tolerance, cap: of the loss, where it takes one.
        samples: how many the proof was made on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["max_drop", "max_cost", "max_latency_ms", "risk"]
    value: float
    unit: str
    quantile: Literal["p50", "p95"] | None = None
    delta: float | None = None
    method: str | None = None
    tolerance: float | None = None
    cap: float | None = None
    samples: int | None = None

    @property
    def loss(self) -> Loss:
        """What a risk is the mean of."""
        return loss_named(self.unit, tolerance=self.tolerance, cap=self.cap)

    def __str__(self) -> str:
        if self.kind == "risk":
            method = METHODS.get(str(self.method))()
            begins = method.certainty(1.0 if self.delta is None else self.delta)
            count = f"{self.samples:,} proof samples"
            return f"{begins}{self.loss.says(self.value)} ({method.title}, {count})"
        if self.kind == "max_latency_ms":
            who = {"p50": "half of the samples take", "p95": "95 % of the samples take"}
            return f"{who[str(self.quantile)]} at most {self.value:g} ms at batch size 1"
        if self.kind == "max_drop" and self.unit == "MAE":
            return f"MAE at most {self.value:g} above the full model's"
        if self.kind == "max_drop":
            return f"at most {self.value:g} points of accuracy below the full model"
        return f"at most {self.value:g} of the full model's {self.unit}"
