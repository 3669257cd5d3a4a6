"""Operating points: a policy with its numbers, what it promises, and for which model and engine."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.calibration.risk.losses import Loss, loss_named
from offramp.calibration.risk.methods import METHODS
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.policies.base import Policy, policy_from_config
from offramp.reducers.reducer import ReducerSpec


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

    @property
    def flags(self) -> str:
        """How to ask for it on the command line."""
        wanted: dict[str, str | float | None]
        wanted = {self.kind: self.value, "delta": self.delta, "quantile": self.quantile}
        if self.kind == "risk":
            wanted |= {"risk_kind": self.unit, "method": self.method}
            wanted |= {"tolerance": self.tolerance, "cap": self.cap}
        return " ".join(
            f"--{name.replace('_', '-')} {value if isinstance(value, str) else f'{value:g}'}"
            for name, value in wanted.items()
            if value is not None
        )

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


class FrontPoint(BaseModel):
    """One setting on the front, measured on the calibration samples.

    Attributes:
        reducer: what leaves tokens out at this setting; None: what the run's model was made with.
        policy: config of the policy.
        active: early exits that are on.
        accuracy: percent; the MAE in regression.
        drop: percentage points below the full model; in regression how much its MAE is above.
        drop_error: standard error of ``drop`` (paired).
        cost: mean cost in the unit of the searched table.
        cost_share: cost over the unmodified model's.
        speedup_layers: blocks in the model over mean blocks run.
        speedup_macs: MACs of the unmodified model over mean MACs, heads counted.
        speedup_time: the same for measured time.
        exit_share: (K,) share of the samples that leave at each exit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reducer: ReducerSpec | None = None
    policy: dict[str, Any]
    active: tuple[int, ...]
    accuracy: float
    drop: float
    drop_error: float
    cost: float
    cost_share: float
    speedup_layers: float
    speedup_macs: float | None = None
    speedup_time: float | None = None
    exit_share: tuple[float, ...]

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        values = self.policy.get("thresholds")
        return None if values is None else tuple(values)


class Probes(BaseModel):
    """What the policy read at every exit for a few hundred samples: ids (n,), scores (n, K)."""

    model_config = ConfigDict(extra="forbid")

    ids: list[int] = []
    scores: list[list[float]] = []


class OperatingPoint(FrontPoint):
    """A chosen setting with its promise, and everything that makes it valid.

    Attributes:
        promise: what it was chosen for.
        task: what kind of answer; says what ``accuracy`` is.
        full_accuracy: percent, of the full model on the same samples; its MAE in regression.
        n: samples that the numbers were measured on.
        samples: how many calibration samples each part had: what was fitted, the thresholds and
            the proof never saw the same one.
        fingerprint: of the model, under its reducer.
        full_model: fingerprint of what ``drop`` is held against, where that is another model.
        records: digest of the records it was chosen on.
        costs: the table its cost was searched on; ``macs`` and ``time`` where known.
        probes: for checking another engine version or machine.
        notes: what a reader of the numbers should know.
        front: all settings worth having, cheapest first.
    """

    promise: Promise
    task: str = "classification"
    full_accuracy: float
    n: int
    samples: dict[str, int] = {}
    dataset: str
    split: str
    exit_names: list[str]
    positions: list[int]
    blocks: int
    fingerprint: str
    full_model: str | None = None
    records: str
    engine: str
    precision: str
    versions: dict[str, str] = {}
    num_threads: int | None = None
    costs: CostTable
    macs: CostTable | None = None
    time: CostTable | None = None
    probes: Probes = Probes()
    notes: list[str] = []
    front: list[FrontPoint] = Field(default=[], repr=False)
    format: Literal[1] = 1

    @property
    def hardware(self) -> Any:
        """Where the time was measured; ``None`` for points without time."""
        return None if self.time is None else self.time.meta.get("hardware")

    @property
    def loss(self) -> Loss:
        """What its risk is the mean of: a loss of the answers it delivers."""
        return self.promise.loss.scaled(self.policy.get("temperatures"))

    def policy_object(self) -> Policy:
        """The policy, ready to run."""
        return policy_from_config(self.policy)

    def check(
        self,
        fingerprint: str,
        engine: str = "torch",
        precision: str = "float32",
        versions: dict[str, str] | None = None,
    ) -> list[str]:
        """Raise `OfframpError` unless the point was calibrated for this model and arithmetic.

        Returns warnings about libraries that have changed since.
        """
        if fingerprint != self.fingerprint:
            raise OfframpError(
                f"this operating point belongs to model {self.fingerprint}, not to {fingerprint}: "
                "collect records with this model and calibrate again"
            )
        if engine != self.engine:
            raise OfframpError(
                f"this operating point was calibrated on engine {self.engine!r}, not {engine!r}: "
                f"use {self.engine!r}, or collect records with {engine!r} and calibrate again"
            )
        if precision != self.precision:
            raise OfframpError(
                f"this operating point was calibrated at precision {self.precision}, not "
                f"{precision}, which shifts confidences: collect and calibrate at {precision}"
            )
        return [
            f"{name} is {found}, but the operating point was calibrated with {self.versions[name]}"
            for name, found in (versions or {}).items()
            if self.versions.get(name, found) != found
        ]

    def save(self, path: Path | str) -> None:
        """Write the point as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a saved point, or raise `OfframpError` naming file and key."""
        try:
            point = cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "operating point"
            raise OfframpError(f"{path}: {key}: {first['msg']}") from None
        try:
            point.policy_object().check(len(point.exit_names))
        except OfframpError as error:
            raise OfframpError(f"{path}: {error}") from None
        return point
