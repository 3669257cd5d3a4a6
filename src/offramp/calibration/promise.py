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
    (``p95``) of the samples, each taking the median times of the pieces it runs through.
    ``risk``: the mean of the loss ``unit`` is at most ``value``, as ``method`` proves it.

    Attributes:
        certainty: with which a drop was chosen, judged by its standard error.
        quantile: of a latency.
        delta: probability that the statement about a risk is wrong, over the draw of its samples.
        method: how the risk was bounded.
        tolerance, cap: of the loss, where it takes one.
        samples: how many it was proved or estimated on.
        split: that these are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["max_drop", "max_cost", "max_latency_ms", "risk"]
    value: float
    unit: str
    certainty: float | None = None
    quantile: Literal["p50", "p95"] | None = None
    delta: float | None = None
    method: str | None = None
    tolerance: float | None = None
    cap: float | None = None
    samples: int | None = None
    split: str | None = None

    @property
    def loss(self) -> Loss:
        """What a risk is the mean of."""
        return loss_named(self.unit, tolerance=self.tolerance, cap=self.cap)

    @property
    def statement(self) -> str:
        """What is promised."""
        says = {
            "max_drop": self._says_drop,
            "max_cost": self._says_cost,
            "max_latency_ms": self._says_latency,
            "risk": self._says_risk,
        }
        return says[self.kind]()

    @property
    def evidence(self) -> str:
        """On what it stands: which samples, and whether they prove it."""
        count = "" if self.samples is None else f"{self.samples:,} "
        split = "" if self.split is None else f" of the {self.split} split"
        if self.kind == "risk":
            return f"{METHODS.get(str(self.method))().title}, {count}proof samples{split}"
        sure = "" if self.certainty is None else f" with {100 * self.certainty:g} % certainty"
        return f"estimated on {count}samples{split}{sure}, not proved"

    def __str__(self) -> str:
        return f"{self.statement} ({self.evidence})"

    def _says_drop(self) -> str:
        if self.unit == "MAE":
            return f"MAE at most {self.value:g} above the full model's"
        points = "point" if self.value == 1 else "points"
        return f"at most {self.value:g} {points} of accuracy below the full model"

    def _says_cost(self) -> str:
        return f"at most {self.value:g} of the full model's {self.unit}"

    def _says_latency(self) -> str:
        who = {"p50": "half", "p95": "95 %"}[str(self.quantile)]
        return (
            f"{who} of the samples take at most {self.value:g} ms at batch size 1, by the engine's "
            "table of median times"
        )

    def _says_risk(self) -> str:
        delta = 1.0 if self.delta is None else self.delta
        return METHODS.get(str(self.method))().certainty(delta) + self.loss.says(self.value)
