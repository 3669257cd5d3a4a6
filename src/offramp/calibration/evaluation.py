"""Evaluate: does an operating point keep its promise on samples it has never seen?"""

from pydantic import BaseModel

from offramp.calibration.front import Measure, measure, speedup_layers
from offramp.calibration.point import OperatingPoint
from offramp.calibration.promise import Promise
from offramp.calibration.records import Records
from offramp.calibration.replay import Decisions, replay
from offramp.calibration.targets import SLACK, latency_quantile
from offramp.errors import OfframpError
from offramp.tasks import Classification, Task


class Evaluation(BaseModel):
    """An operating point on held-out samples.

    Attributes:
        n: samples.
        task: what kind of answer.
        accuracy, full_accuracy: percent; the MAE in regression.
        figures, full_figures: all that is reported, by name: ``accuracy``, or ``mae`` and ``rmse``.
        drop: percentage points below the full model; in regression how much its MAE is above.
        drop_interval: 95 % confidence interval of ``drop`` (paired).
        cost_share: mean cost over the unmodified model's, in the promise's table.
        speedup_layers, speedup_macs, speedup_time: against the unmodified model.
        exit_share: (K,) share of the samples that leave at each exit.
        leaver_accuracy: (K,) percent right among those, or their MAE; ``None`` where nobody left.
        promise: what the point promised.
        taken: what the promise bounds, as it was here.
        kept: whether the promise held here.
        verdict: the same as one sentence.
    """

    dataset: str
    split: str
    n: int
    task: str = "classification"
    accuracy: float
    full_accuracy: float
    figures: dict[str, float] = {}
    full_figures: dict[str, float] = {}
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
    taken: float | None = None
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
    if point.full_model not in (None, records.full_model):
        raise OfframpError(
            f"the point's losses are against model {point.full_model}: evaluate it on "
            "records.against(that model's records)"
        )
    policy = point.policy_object()
    records = records.under(type(policy), policy.parameters())
    decisions = replay(policy, records, point.active)
    found = measure(decisions, records, point.costs, point.active)
    full, task = records.full_accuracy, records.task
    drop = task.scale * (full - found.accuracy)
    share = found.exit_share
    promise = point.promise
    taken = _taken(point, records, decisions, found, drop)
    kept = taken <= promise.value + SLACK
    low, high = task.interval(full - found.accuracy, found.differ, len(records))
    interval = (task.scale * low, task.scale * high)
    return Evaluation(
        dataset=meta.dataset,
        split=meta.split,
        n=len(records),
        task=meta.task,
        accuracy=task.value(found.accuracy),
        full_accuracy=task.value(full),
        figures=task.figures(decisions.prediction, records.labels),
        full_figures=task.figures(records.full_prediction, records.labels),
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
        taken=taken,
        kept=kept,
        verdict=_verdict(promise, task, taken, drop, interval, len(records)),
    )


def _taken(
    point: OperatingPoint, records: Records, decisions: Decisions, found: Measure, drop: float
) -> float:
    """What the promise bounds, as it was here."""
    promise = point.promise
    if promise.kind == "max_drop":
        return drop
    if promise.kind == "max_cost":
        return found.cost
    if promise.kind == "risk":
        return float(point.loss.along([decisions], records).mean())
    return latency_quantile(found.exit_share, point.active, point.costs, str(promise.quantile))


def paired_interval(drop: float, differ: float, count: int) -> tuple[float, float]:
    """95 % interval of a paired difference of accuracies, as shares (Agresti and Min 2005)."""
    return Classification().interval(drop, differ, count)


def _leaver_accuracy(decisions: Decisions, records: Records) -> list[float | None]:
    worth = records.worth_of(decisions.prediction).double()
    accuracy: list[float | None] = []
    for k in range(decisions.num_exits):
        leavers = worth[decisions.exit == k]
        accuracy.append(records.task.value(leavers.mean().item()) if len(leavers) else None)
    return accuracy


def _verdict(
    promise: Promise,
    task: Task,
    taken: float,
    drop: float,
    interval: tuple[float, float],
    count: int,
) -> str:
    low, high = interval
    loss = f"{task.show_loss(drop)} (95 % interval {low:+.2f} … {high:+.2f}, {count} samples)"
    shown = {"max_cost": f"{taken:.3f} taken, ", "max_latency_ms": f"{taken:.3f} ms taken, "}
    before = promise.loss.show(taken) + ", " if promise.kind == "risk" else ""
    word = "kept" if taken <= promise.value + SLACK else "NOT kept"
    return f"promise {word}: {promise}; {shown.get(promise.kind, before)}{loss}"
