"""What a point is asked to be: one target, and what goes with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from offramp.calibration.records import Records
from offramp.calibration.risk.control import RiskBound
from offramp.calibration.targets import QUANTILES, MaxCost, MaxDrop, MaxLatency, Target
from offramp.costs.table import CostTable
from offramp.errors import OfframpError

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
    """Keyword arguments of `Wish`."""

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


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A target, and what goes with it; ``None`` is not given. See `offramp.calibrate`."""

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

    def check(self, spell: Callable[[str], str] = str) -> "Wish":
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

    @property
    def slug(self) -> str:
        """A name for files."""
        parts = [
            f"{name.replace('_', '-')}-{getattr(self, name):g}"
            for name in (*_TARGETS, "delta", "tolerance", "cap")
            if getattr(self, name) is not None
        ]
        more = (self.quantile, self.risk_kind, self.method, self.path)
        return "-".join([*parts, *(word.replace("_", "-") for word in more if word)])

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
