"""Operating points: a policy with its numbers, what it promises, and for which model and engine."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.calibration.front import FrontPoint
from offramp.calibration.promise import Promise
from offramp.calibration.risk.losses import Loss
from offramp.calibration.wish import Wish
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.policies.base import Policy, policy_from_config


class Probes(BaseModel):
    """What the policy read at every exit for a few hundred samples: ids (n,), scores (n, K)."""

    model_config = ConfigDict(extra="forbid")

    ids: list[int] = []
    scores: list[list[float]] = []


class OperatingPoint(FrontPoint):
    """A chosen setting with its promise, and everything that makes it valid.

    Attributes:
        promise: what it was chosen for.
        wish: how it was asked for.
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
    wish: Wish | None = None
    task: str = "classification"
    full_accuracy: float
    n: int
    samples: dict[str, int] = Field(default_factory=dict)
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
    versions: dict[str, str] = Field(default_factory=dict)
    num_threads: int | None = None
    costs: CostTable
    macs: CostTable | None = None
    time: CostTable | None = None
    probes: Probes = Probes()
    notes: list[str] = Field(default_factory=list)
    front: list[FrontPoint] = Field(default_factory=list, repr=False)
    format: Literal[1] = 1

    @property
    def asked(self) -> Wish:
        """How to ask for it again; of points without their wish, as much as they still tell."""
        if self.wish is not None:
            return self.wish
        promise = self.promise
        same = {"certainty", "quantile", "delta", "method", "tolerance", "cap"}
        return Wish.model_validate(
            {
                **promise.model_dump(include=same),
                promise.kind: promise.value,
                "risk_kind": promise.unit if promise.kind == "risk" else None,
                "policy": self.policy["name"],
                "temperatures": not set(self.policy.get("temperatures", ())) <= {1.0},
                "reducers": () if self.reducer is None else (self.reducer,),
            }
        ).about(self, self.costs)

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
