"""What a point is asked to be: one target, what goes with it, and how it is to be found."""

import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from offramp.calibration.records import Records
from offramp.calibration.risk.control import RiskBound
from offramp.calibration.targets import QUANTILES, MaxCost, MaxDrop, MaxLatency, Target
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.reducers.reducer import ReducerSpec

_TARGETS = ("max_drop", "max_cost", "max_latency_ms", "risk")
_BELONGS = {
    "certainty": "max_drop",
    "quantile": "max_latency_ms",
    "delta": "risk",
    "risk_kind": "risk",
    "method": "risk",
    "path": "risk",
    "tolerance": "risk",
    "cap": "risk",
}


class Wanted(TypedDict, total=False):
    """Keyword arguments of `offramp.calibrate` that say what is wanted."""

    policy: str
    policy_options: dict[str, Any]
    max_drop: float | None
    max_cost: float | None
    max_latency_ms: float | None
    risk: float | None
    certainty: float | None
    quantile: str | None
    delta: float | None
    risk_kind: str | None
    method: str | None
    path: str | None
    tolerance: float | None
    cap: float | None
    temperatures: bool
    search: str
    smooth: bool


class Origin(Protocol):
    """Where records come from, as they and points made from them say it."""

    @property
    def engine(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def split(self) -> str: ...


class Wish(BaseModel):
    """Everything a point is asked to be; ``None`` is not given. See `offramp.calibrate`.

    Attributes:
        cost: what a search by cost went by.
        batch_size: images per batch, where that was time.
        engine, precision, split: of the records; None is float32, which engines take by default.
        reducers: strengths of a token reducer that were to choose from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str = "confidence"
    policy_options: dict[str, Any] = Field(default_factory=dict)
    max_drop: float | None = None
    max_cost: float | None = None
    max_latency_ms: float | None = None
    risk: float | None = None
    certainty: float | None = None
    quantile: str | None = None
    delta: float | None = None
    risk_kind: str | None = None
    method: str | None = None
    path: str | None = None
    tolerance: float | None = None
    cap: float | None = None
    temperatures: bool = False
    search: str = "coordinate"
    smooth: bool = True
    cost: Literal["macs", "time"] = "macs"
    batch_size: int = 1
    engine: str = "torch"
    precision: str | None = None
    split: str = "calibration"
    reducers: tuple[ReducerSpec, ...] = ()

    def check(self, spell: Callable[[str], str] = str) -> Self:
        """Return the wish, or raise `OfframpError` for what does not go together.

        Args:
            spell: how whoever asked calls an argument.
        """
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            listed = ", ".join(map(spell, _TARGETS[:-1])) + f" or {spell(_TARGETS[-1])}"
            found = " and ".join(map(spell, given)) or "none"
            raise OfframpError(f"give exactly one target: {listed} ({found} given)")
        for name, target in _BELONGS.items():
            if getattr(self, name) is not None and target != given[0]:
                raise OfframpError(
                    f"{spell(name)} goes with {spell(target)}, not with {spell(given[0])}"
                )
        if self.quantile not in (None, *QUANTILES):
            known = " or ".join(QUANTILES)
            raise OfframpError(f"{spell('quantile')} {self.quantile!r}, but it must be {known}")
        self.bound()
        return self

    def about(self, origin: Origin, costs: CostTable) -> Self:
        """The wish, with the records it was asked of and what their cost was counted in."""
        timed = costs.unit.startswith("ms") and self.max_latency_ms is None
        changes = {
            "engine": origin.engine,
            "precision": None if origin.precision == "float32" else origin.precision,
            "split": origin.split,
            "cost": "time" if timed else "macs",
            "batch_size": costs.meta.get("batch_size", 1) if timed else 1,
        }
        return self.model_copy(update=changes)

    @property
    def slug(self) -> str:
        """A name for files: another wish of the same policy and engine has another."""
        parts = [
            f"{name.replace('_', '-')}-{getattr(self, name):g}"
            for name in (*_TARGETS, "certainty", "delta", "tolerance", "cap")
            if getattr(self, name) is not None
        ]
        parts += [f"{name}-{_exact(value)}" for name, value in self.policy_options.items()]
        more = [self.quantile, self.risk_kind, self.method, self.path]
        more += ["temperatures"] if self.temperatures else []
        more += [self.search] if self.search != Wish().search else []
        more += [] if self.smooth else ["no-smooth"]
        return "-".join([*parts, *(word.replace("_", "-") for word in more if word)])

    @property
    def flags(self) -> str:
        """The options of ``offramp calibrate`` that ask for it; defaults are left out."""
        asked = self.model_dump(exclude_defaults=True, exclude={"reducers", "policy_options"})
        told = [
            ("policy_option", f"{name}={json.dumps(value)}")
            for name, value in self.policy_options.items()
        ]
        pairs = [*asked.items(), *told, *_strengths(self.reducers).items()]
        return " ".join(_flag(*pair) for pair in pairs)

    def bound(self) -> RiskBound | None:
        """The risk to be proved, where one is asked for."""
        if self.risk is None:
            return None
        return RiskBound.of(
            self.risk,
            delta=self.delta,
            kind=self.risk_kind,
            method=self.method,
            path=self.path,
            tolerance=self.tolerance,
            cap=self.cap,
        )

    def target(self, records: Records, costs: CostTable) -> Target:
        """Any other target, for settings measured on these records."""
        if self.max_drop is not None:
            return MaxDrop(self.max_drop, records, self.certainty)
        if self.max_cost is not None:
            return MaxCost(self.max_cost, costs.unit)
        if self.max_latency_ms is not None:
            return MaxLatency(self.max_latency_ms, costs, self.quantile or "p95")
        raise OfframpError("a risk is no target to choose by: it is proved along a path")


def _strengths(reducers: Sequence[ReducerSpec]) -> dict[str, str]:
    """A reducer, and the option its strengths differ in: ``{"reducer": …, "r": "0,4,8"}``."""
    if not reducers:
        return {}
    first = reducers[0]
    columns = {key: [spec.options.get(key) for spec in reducers] for key in first.options}
    differ = {key: column for key, column in columns.items() if any(v != column[0] for v in column)}
    same = {key: value for key, value in first.options.items() if key not in differ}
    spec = ReducerSpec(name=first.name, options=same)
    return {"reducer": spec.as_yaml} | {
        key: ",".join(map(_exact, column)) for key, column in differ.items()
    }


def _flag(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {shlex.quote(_exact(value))}"


def _exact(value: Any) -> str:
    """The shortest words that mean just this value: ``1`` for 1.0."""
    brief = f"{value:g}" if isinstance(value, float) else str(value)
    return brief if not isinstance(value, float) or float(brief) == value else repr(value)
