"""Evaluate: does an operating point keep its promise on samples it has never seen?"""

import math

from pydantic import BaseModel

from offramp.calibration.front import measure, speedup_layers
from offramp.calibration.point import OperatingPoint, Promise
from offramp.calibration.records import Records
from offramp.calibration.replay import Decisions, replay
from offramp.errors import OfframpError

_Z95 = 1.959964


class Evaluation(BaseModel):
    """An operating point on held-out samples.

    Attributes:
        n: samples.
        accuracy, full_accuracy: percent.
        drop: percentage points below the full model.
        drop_interval: 95 % confidence interval of ``drop`` (paired).
        cost_share: mean cost over the unmodified model's, in the promise's table.
        speedup_layers, speedup_macs, speedup_time: against the unmodified model.
        exit_share: (K,) share of the samples that leave at each exit.
        leaver_accuracy: (K,) percent right among those, ``None`` where nobody left.
        kept: whether the promise held here.
        verdict: the same as one sentence.
    """

    dataset: str
    split: str
    n: int
    accuracy: float
    full_accuracy: float
    drop: float
    drop_interval: tuple[float, float]
    cost_share: float
    speedup_layers: float
    speedup_macs: float | None
    speedup_time: float | None
    exit_names: list[str]
    exit_share: tuple[float, ...]
    leaver_accuracy: list[float | None]
    promise: Promise
    kept: bool
    verdict: str


def evaluate(point: OperatingPoint, records: Records) -> Evaluation:
    """Replay ``point`` over held-out records and compare with the full model, sample by sample.

    Raises `OfframpError` for records of another model or engine, or the very records the point
    was calibrated on.
    """
    meta = records.meta
    point.check(meta.fingerprint, meta.engine, meta.precision)
    if records.digest == point.records:
        raise OfframpError(
            f"the point was calibrated on these very records (split {meta.split!r}): evaluate it "
            "on another split"
        )
    decisions = replay(point.policy_object(), records, point.active)
    found = measure(decisions, records, point.costs, point.active)
    full = records.accuracy[-1]
    drop = 100 * (full - found.accuracy)
    share = found.exit_share
    promise = point.promise
    kept = (drop if promise.kind == "max_drop" else found.cost) <= promise.value + 1e-9
    low, high = paired_interval(full - found.accuracy, found.differ, len(records))
    interval = (100 * low, 100 * high)
    return Evaluation(
        dataset=meta.dataset,
        split=meta.split,
        n=len(records),
        accuracy=100 * found.accuracy,
        full_accuracy=100 * full,
        drop=drop,
        drop_interval=interval,
        cost_share=found.cost,
        speedup_layers=speedup_layers(records, share),
        speedup_macs=point.macs.speedup(share, point.active) if point.macs else None,
        speedup_time=point.time.speedup(share, point.active) if point.time else None,
        exit_names=meta.exit_names,
        exit_share=share,
        leaver_accuracy=_leaver_accuracy(decisions, records),
        promise=promise,
        kept=kept,
        verdict=_verdict(promise, drop, interval, found.cost, len(records)),
    )


def paired_interval(drop: float, differ: float, count: int) -> tuple[float, float]:
    """95 % interval of a paired difference of accuracies, as shares.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions",
    Statistics in Medicine 2005: half a sample is added to each of the four cells, so that the
    interval has a width even when no answer differs.
    """
    lost, gained = count * (differ + drop) / 2 + 0.5, count * (differ - drop) / 2 + 0.5
    total = count + 2
    centre = (lost - gained) / total
    error = math.sqrt(max(lost + gained - (lost - gained) ** 2 / total, 0.0)) / total
    return centre - _Z95 * error, centre + _Z95 * error


def _leaver_accuracy(decisions: Decisions, records: Records) -> list[float | None]:
    right = (decisions.prediction == records.labels).double()
    accuracy: list[float | None] = []
    for k in range(decisions.num_exits):
        leavers = right[decisions.exit == k]
        accuracy.append(100 * leavers.mean().item() if len(leavers) else None)
    return accuracy


def _verdict(
    promise: Promise, drop: float, interval: tuple[float, float], cost: float, count: int
) -> str:
    loss = f"{drop:+.2f} points lost (95 % interval {interval[0]:+.2f} … {interval[1]:+.2f}"
    loss += f", {count} samples)"
    if promise.kind == "max_drop":
        word = "kept" if drop <= promise.value + 1e-9 else "NOT kept"
        return f"promise {word}: {promise}; {loss}"
    word = "kept" if cost <= promise.value + 1e-9 else "NOT kept"
    return f"promise {word}: {promise}; {cost:.3f} taken, {loss}"
