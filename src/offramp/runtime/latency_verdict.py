"""Was a promised latency kept? The promise goes by a table of medians, the verdict by a clock."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from offramp.calibration.promise import Promise


class LatencyVerdict(BaseModel):
    """What measured times say of a promised latency."""

    model_config = ConfigDict(extra="forbid")

    kept: bool | None = Field(description="None where batch size 1 was not timed")
    taken_ms: float | None = Field(description="the promised quantile of the samples' times")
    sentence: str


def judge_latency(
    promise: "Promise", measured: Mapping[str, float] | None, *, how: str = "at batch size 1"
) -> LatencyVerdict | None:
    """Judge a promise by the times that samples took one by one; None for promises of other things.

    Args:
        measured: milliseconds by quantile, ``p50`` and ``p95``; None where nothing was timed at
            batch size 1.
        how: they were measured.
    """
    if promise.kind != "max_latency_ms":
        return None
    if measured is None:
        sentence = f"promise not judged, batch size 1 was not timed: {promise}"
        return LatencyVerdict(kept=None, taken_ms=None, sentence=sentence)
    taken = measured[str(promise.quantile)]
    kept = taken <= promise.value
    times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in measured.items())
    sentence = f"promise {'kept' if kept else 'NOT kept'}: {promise}; measured {times}, {how}"
    return LatencyVerdict(kept=kept, taken_ms=taken, sentence=sentence)
