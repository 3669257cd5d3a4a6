"""Threshold search against exhaustive search, its pieces, and its speed."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_records
from numpy.typing import NDArray

from offramp.calibration.search import OFF, ThresholdSearch, midway
from offramp.calibration.smoothing import expected_worth
from offramp.calibration.sweep import Sweep


def tiny_search(seed: int, count: int, exits: int, **options: object) -> ThresholdSearch:
    random = np.random.default_rng(seed)
    scores = random.integers(1, 12, (count, exits)) / 12  # with ties
    correct = random.random((count, exits)) < 0.3 + 0.5 * scores
    return ThresholdSearch(
        scores.astype(np.float32),
        correct,
        body=[1 / exits] * exits,
        head=[0.05] * exits,
        always=0.0,
        never=1.0,
        **options,
    )


def best_of_all(search: ThresholdSearch, price: float) -> float:
    """Objective of the best setting, by trying every one."""
    choices = [[OFF, 0, *search.steps[k].tolist()] for k in range(search.exits - 1)]
    found = (search.measure(leavers) for leavers in itertools.product(*choices))
    return max(one.accuracy - price * one.cost for one in found)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), price=st.floats(0.01, 3))
def test_one_exit_is_exactly_the_best(seed: int, count: int, price: float) -> None:
    search = tiny_search(seed, count, exits=2)
    _, value = search.solve(price, search.empty())
    assert value == pytest.approx(best_of_all(search, price), abs=1e-9)


def test_two_exits_against_every_threshold_and_active_set() -> None:
    gaps = []
    for seed, price in itertools.product(range(12), (0.1, 0.5, 1.0)):
        search = tiny_search(seed, 30, exits=3)
        sweep = Sweep(search)
        found = max(
            sweep.measure(leavers).accuracy - price * sweep.measure(leavers).cost
            for leavers in sweep.settings()
        )
        gaps.append(best_of_all(search, price) - found)
    assert min(gaps) >= -1e-9  # nothing is better than everything
    assert np.mean(np.array(gaps) < 1e-9) >= 0.7
    assert max(gaps) < 0.04  # about one sample of thirty


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), price=st.floats(0.01, 3))
def test_climbing_only_improves_and_reports_what_is_measured(seed: int, price: float) -> None:
    search = tiny_search(seed, 25, exits=4)
    leavers, value = search.solve(price, search.empty())
    found = search.measure(leavers)
    start = search.measure(search.empty())
    assert value == pytest.approx(found.accuracy - price * found.cost, abs=1e-9)
    assert value >= start.accuracy - price * start.cost - 1e-9
    tidy = search.measure(search.tidy(leavers))
    assert tidy.exit_share == found.exit_share
    assert tidy.cost <= found.cost + 1e-12


def test_locked_exits_stay_on() -> None:
    search = tiny_search(3, 30, exits=4, locked=(0, 1))
    for price in (0.01, 0.3, 3.0):
        leavers, _ = search.solve(price, search.empty())
        assert OFF not in search.tidy(leavers)[:2]


@given(low=st.floats(0, 1, width=32), high=st.floats(0, 1, width=32))
def test_midway_separates_strictly_in_float32(low: float, high: float) -> None:
    low, high = sorted((low, high))
    if low == high:
        high = float(np.nextafter(np.float32(low), np.float32(2)))
    threshold = np.float32(midway(low, high))
    assert float(threshold) == midway(low, high)
    assert np.float32(high) > threshold
    assert not np.float32(low) > threshold


def test_midway_of_neighbouring_floats_and_of_distant_ones() -> None:
    below = np.float32(0.7)
    assert midway(below, np.nextafter(below, np.float32(1))) == float(below)
    assert midway(0.25, 0.75) == 0.5


def test_thresholds_release_exactly_the_leavers() -> None:
    search = tiny_search(1, 30, exits=2)
    for leavers in (0, *search.steps[0].tolist()):
        fired = search.scores[0] > np.float32(search.threshold(0, leavers))
        assert np.count_nonzero(fired) == leavers


def records_arrays(count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    records = made_records(count, 5, 6)
    return records.confidence.numpy(), records.correct.numpy()


def test_smooth_curves_follow_the_score_and_keep_the_mean() -> None:
    scores, correct = records_arrays(2000)
    curves = expected_worth(scores, correct)
    assert np.allclose(curves.mean(axis=0), correct.mean(axis=0), atol=0.02)
    order = np.argsort(scores[:, 1])
    assert curves[order[-200:], 1].mean() > curves[order[:200], 1].mean() + 0.2
    tied = expected_worth(np.ones((9, 1), dtype=np.float32), np.arange(9)[:, None] % 3 > 0)
    assert np.ptp(tied) == 0
    assert expected_worth(scores[:4], np.ones((4, 5), dtype=bool)).tolist() == [[1.0] * 5] * 4


def test_smooth_search_loses_less_on_new_samples_than_it_claims() -> None:
    scores, correct = records_arrays(6000)
    half = slice(0, 1000)
    claims = {}
    for smooth in (True, False):
        expected = expected_worth(scores[half], correct[half]) if smooth else None
        arguments = {"body": [0.2] * 5, "head": [0.02] * 5, "always": 0.0, "never": 1.0}
        search = ThresholdSearch(scores[half], correct[half], expected=expected, **arguments)
        rest = ThresholdSearch(scores[1000:], correct[1000:], **arguments)
        gaps = []
        for price in (0.05, 0.1, 0.2, 0.4):
            leavers, _ = search.solve(price, search.empty())
            thresholds = search.thresholds(leavers)
            exits = np.full(rest.count, 4)
            for k in (3, 2, 1, 0):
                exits[rest.scores[k] > np.float32(thresholds[k])] = k
            worth = rest.true_worth
            true = worth[exits, np.arange(rest.count)].mean() - worth[-1].mean()
            claimed = search.measure(leavers).accuracy - search.true_worth[-1].mean()
            gaps.append(claimed - true)
        claims[smooth] = float(np.mean(gaps))
    assert claims[True] < claims[False]


@pytest.mark.slow
def test_fifty_thousand_by_twelve_in_about_a_second() -> None:
    random = np.random.default_rng(0)
    scores = random.random((50_000, 12)).astype(np.float32)
    correct = random.random((50_000, 12)) < 0.5 + 0.5 * scores
    expected_worth(scores[:100], correct[:100])  # imports
    start = time.process_time()
    search = ThresholdSearch(
        scores,
        correct,
        [1 / 12] * 12,
        [0.01] * 12,
        expected=expected_worth(scores, correct),
        always=0.0,
        never=1.0,
    )
    assert len(Sweep(search).settings()) > 12
    assert time.process_time() - start < 2.0  # 0.7 on an idle laptop core


def test_budgets_inside_a_jump_of_the_front_have_settings() -> None:
    """An exit that is right every other time, however sure: one price sends everybody there."""
    count = 400
    scores = np.linspace(1, 0, 2 * count, dtype=np.float32).reshape(count, 2)
    worth = np.stack([np.arange(count) % 2 == 0, np.ones(count, dtype=bool)], axis=1)
    search = ThresholdSearch(scores, worth, [0.3, 0.7], [0.0, 0.0], always=-1.0, never=2.0)
    sweep = Sweep(search)
    paid = sorted(sweep.measure(setting).cost for setting in sweep.settings())
    assert paid[0] == pytest.approx(0.3)
    assert paid[-1] == pytest.approx(1.0)
    assert max(np.diff(paid)) < 0.1


def test_an_exit_better_than_expected_is_reached_by_a_ramp() -> None:
    """No price leads to it, yet the sure may leave ahead of it and everybody else there."""
    count = 400
    scores = np.linspace(1, 0, 3 * count, dtype=np.float32).reshape(count, 3)
    sure, all_of_them = np.arange(count) < count // 2, np.ones(count, dtype=bool)
    worth = np.stack([sure, all_of_them, np.arange(count) % 10 > 0], axis=1)
    expected = np.stack([sure, 0.5 * all_of_them, all_of_them], axis=1).astype(float)
    search = ThresholdSearch(
        scores, worth, [0.1, 0.7, 0.2], [0.0] * 3, expected=expected, always=-1.0, never=2.0
    )
    sweep = Sweep(search)
    right = [m.cost for m in map(sweep.measure, sweep.settings()) if m.accuracy == 1]
    assert min(right) == pytest.approx(0.5 * 0.1 + 0.5 * 0.8)
    assert max(right) == pytest.approx(0.8)
    assert max(np.diff(sorted(right))) < 0.1
