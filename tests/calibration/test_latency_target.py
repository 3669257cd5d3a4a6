"""Latency promises: quantiles of the time of leaving, not means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_records

from offramp.calibration import calibrate, evaluate, replay
from offramp.calibration.search import ThresholdSearch
from offramp.calibration.targets import latency_quantile
from offramp.costs.table import CostTable
from offramp.errors import OfframpError


def milliseconds(exits: int, head: float = 0.25, **changes: object) -> CostTable:
    values = {
        "unit": "ms",
        "body": (1.0,) * exits,
        "head": (*(head,) * (exits - 1), 0.0),
        "full": float(exits),
        "meta": {"batch_size": 1},
    }
    return CostTable(**values | changes)


def test_the_quantile_is_a_time_somebody_takes() -> None:
    table, share = milliseconds(4), (0.5, 0.0, 0.45, 0.05)
    assert latency_quantile(share, (0, 2), table, "p50") == 1.25
    assert latency_quantile(share, (0, 2), table, "p95") == 3.5
    assert latency_quantile((0.5, 0.0, 0.44, 0.06), (0, 2), table, "p95") == 4.5
    assert latency_quantile((0.0, 0.0, 0.0, 1.0), (), table, "p50") == 4.0


@pytest.mark.parametrize("policy", ["confidence", "entropy", "pcee", "voting"])
@pytest.mark.parametrize("quantile", ["p50", "p95"])
def test_so_many_samples_are_in_time(policy: str, quantile: str) -> None:
    records, table = made_records(900, 5, 6), milliseconds(5)
    point = calibrate(records, policy=policy, max_latency_ms=4.0, quantile=quantile, time=table)
    decisions = replay(point.policy_object(), records, point.active)
    times = np.array(table.leave_cost(point.active))[decisions.exit.numpy()]
    share = {"p50": 0.5, "p95": 0.95}[quantile]
    assert np.mean(times <= 4.0 + 1e-9) >= share - 1e-9
    assert point.costs.unit == "ms"
    assert str(point.promise) == (
        f"{'half' if quantile == 'p50' else '95 %'} of the samples take at most 4 ms at batch size "
        f"1, by the engine's table of median times (estimated on {point.n} samples of the "
        "calibration split, not proved)"
    )
    held_out = evaluate(point, made_records(900, 5, 6, seed=8, split="test"))
    assert held_out.taken in table.leave_cost(point.active)
    assert "ms taken" in held_out.verdict


def test_the_best_within_the_time_is_nearly_the_best_there_is() -> None:
    """Of all settings with one early exit, and of the search, none is much more accurate."""
    records, table = made_records(900, 4, 5), milliseconds(4)
    point = calibrate(records, max_latency_ms=3.3, time=table, smooth=False)
    search = ThresholdSearch(
        records.confidence.numpy(),
        records.correct.numpy(),
        [0.25] * 4,
        [0.0625, 0.0625, 0.0625, 0.0],
        always=0.0,
        never=1.0,
    )
    singles = [
        search.measure(tuple(m if j == k else -1 for j in range(3)))
        for k in range(3)
        for m in search.steps[k].tolist()
    ]
    timely = [
        found.accuracy
        for k, found in zip(np.repeat(range(3), len(singles) // 3), singles, strict=False)
        if latency_quantile(found.exit_share, (int(k),), table, "p95") <= 3.3
    ]
    assert timely
    assert point.accuracy >= 100 * max(timely) - 0.6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(0, 2), share=st.sampled_from([0.5, 0.95]))
def test_by_exit_lets_just_enough_go(seed: int, k: int, share: float) -> None:
    records = made_records(200, 4, 5, seed=seed)
    search = ThresholdSearch(
        records.confidence.numpy(),
        records.correct.numpy(),
        [0.25] * 4,
        [0.01] * 4,
        always=0.0,
        never=1.0,
    )
    start, _ = search.solve(0.3, search.empty())
    changed = search.by_exit(start, k, share)
    gone = sum(search.measure(changed).exit_share[: k + 1])
    before = sum(search.measure(start).exit_share[:k])
    assert gone >= share - 1e-9
    if before < share:
        assert gone <= share + 0.011  # ties leave together


def test_a_looser_time_is_never_worse() -> None:
    records, table = made_records(1500, 5, 6), milliseconds(5)
    found = [calibrate(records, max_latency_ms=ms, time=table).accuracy for ms in (1.5, 2.5, 4, 5)]
    assert found == sorted(found)
    half = calibrate(records, max_latency_ms=2.5, quantile="p50", time=table)
    assert half.accuracy >= found[1]


def test_refusals() -> None:
    records = made_records(100, 4, 5)
    with pytest.raises(OfframpError, match="needs a latency table in ms at batch size 1"):
        calibrate(records, max_latency_ms=5.0)
    with pytest.raises(OfframpError, match="at batch size 8"):
        calibrate(records, max_latency_ms=5.0, time=milliseconds(4, meta={"batch_size": 8}))
    with pytest.raises(OfframpError, match=r"quantile 'p99', but it must be p50 or p95"):
        calibrate(records, max_latency_ms=5.0, quantile="p99", time=milliseconds(4))
    with pytest.raises(OfframpError, match=r"within 0\.5 ms \(p95\): the fastest takes 1\.25"):
        calibrate(records, max_latency_ms=0.5, time=milliseconds(4))
    with pytest.raises(OfframpError, match="max_latency_ms = nan"):
        calibrate(records, max_latency_ms=float("nan"), time=milliseconds(4))
