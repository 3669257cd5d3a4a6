"""Risk control: the cheapest setting of a path whose risk is proved to be small."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from offramp.calibration.front import Setting, measure
from offramp.calibration.promise import Promise
from offramp.calibration.records import Records
from offramp.calibration.risk.losses import Loss, loss_named
from offramp.calibration.risk.methods import METHODS, Level, Method
from offramp.calibration.risk.paths import PATHS, PathMaker, Step, decide_along
from offramp.calibration.splits import hash_order
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies.base import Policy

DELTA = 0.1


@dataclass(frozen=True)
class RiskBound:
    """A statement that is to be proved: the mean of a loss is at most ε.

    Attributes:
        level: ε and δ, with what is known of the loss.
        loss: what is lost.
        method: how it is proved.
        path: along which settings.
    """

    level: Level
    loss: Loss
    method: Method
    path: PathMaker

    @classmethod
    def of(
        cls,
        risk: float,
        *,
        delta: float | None = None,
        kind: str | None = None,
        method: str | None = None,
        path: str | None = None,
        tolerance: float | None = None,
        cap: float | None = None,
    ) -> Self:
        """The bound in words of the registries, or `OfframpError` where they do not go together."""
        loss = loss_named(kind or "consistency", tolerance=tolerance, cap=cap)
        how = METHODS.get(method or "ltt")()
        if not 0 < risk < loss.bound:
            raise OfframpError(
                f"risk = {risk:g}, but a {loss.name} risk must be between 0 and {loss.bound:g}"
            )
        if delta is not None and not how.takes_delta:
            raise OfframpError(f"method {how.name!r} takes no delta: {how.title}")
        if delta is not None and not 0 < delta < 1:
            raise OfframpError(f"delta = {delta:g}, but it must be between 0 and 1, such as 0.1")
        level = Level(risk, DELTA if delta is None else delta, loss.bound, loss.binary)
        return cls(level, loss, how, PATHS.get(path or "per-exit")())

    @property
    def promise(self) -> Promise:
        """What a point that it is proved of promises."""
        return Promise(
            kind="risk",
            value=self.level.risk,
            unit=self.loss.name,
            delta=self.level.delta if self.method.takes_delta else None,
            method=self.method.name,
            **self.loss.given,
        )

    def shares(self) -> dict[str, float]:
        """How the samples are divided: what the path looks at, and the proof."""
        return {**self.path.shares, "proof": 1 - sum(self.path.shares.values())}

    def scaled(self, temperatures: Sequence[float] | None) -> Self:
        """The bound for answers whose softmax has these temperatures (K,)."""
        return replace(self, loss=self.loss.scaled(temperatures))

    def check(self, family: type[Policy], task: str) -> None:
        """Raise `OfframpError` where the loss is not defined for these answers."""
        self.loss.check(family, task)


@dataclass(frozen=True)
class Proof:
    """A path on the samples of a proof, and how far along it the statement is proved.

    Attributes:
        settings: (m,) of the path, measured there.
        risks: (m,) mean losses there.
        chosen: index of the last proved one.
    """

    settings: list[Setting]
    risks: list[float]
    chosen: int


def prove(bound: RiskBound, path: list[Step], records: Records, costs: CostTable) -> Proof:
    """Test a path on samples that it was not made from.

    Raises `OfframpError` when nothing can be proved, with the reason.
    """
    decided = decide_along(path, records)
    losses = bound.loss.along(decided, records)
    # The betting test reads samples one after another: in an order that says nothing of them.
    chosen = bound.method.choose(losses[hash_order(records).numpy()], bound.level)
    risks = losses.mean(axis=0)
    if chosen is None:
        raise OfframpError(_refusal(bound, risks, len(records)))
    settings = [
        Setting(policy, active, measure(decisions, records, costs, active))
        for (policy, active), decisions in zip(path, decided, strict=True)
    ]
    return Proof(settings, risks.tolist(), chosen)


def _refusal(bound: RiskBound, risks: np.ndarray, count: int) -> str:
    needed, level = bound.method.needed(bound.level), bound.level
    wish = f"a {bound.loss.name} risk of {level.risk:g}"
    if bound.method.takes_delta:
        wish += f" with delta {level.delta:g}"
    if needed > count:
        return (
            f"{wish} cannot be proved on {count} samples: even if none of them loses anything, "
            f"{needed} are needed"
        )
    return (
        f"{wish} cannot be proved for this policy: already the safest setting of its path has a "
        f"risk of {risks[0]:.4f} on {count} samples"
    )
