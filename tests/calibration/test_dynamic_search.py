"""Dynamic programming against every setting there is, and against coordinate ascent."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_records

from offramp.calibration import calibrate
from offramp.calibration.dynamic import DynamicSearch
from offramp.calibration.search import OFF, ThresholdSearch


def made_search(
    seed: int,
    count: int,
    exits: int,
    kind: type[ThresholdSearch] = DynamicSearch,
    **options: object,
) -> ThresholdSearch:
    random = np.random.default_rng(seed)
    scores = random.integers(1, 12, (count, exits)) / 12  # with ties
    correct = random.random((count, exits)) < 0.3 + 0.5 * scores
    return kind(
        scores.astype(np.float32),
        correct,
        body=random.dirichlet(np.ones(exits)),
        head=random.random(exits) * 0.1,
        always=0.0,
        never=1.0,
        **options,
    )


def objective(search: ThresholdSearch, leavers: tuple[int, ...], price: float) -> float:
    found = search.measure(leavers)
    return found.accuracy - price * found.cost


def best_of_all(search: ThresholdSearch, price: float) -> float:
    choices = [
        [*([] if k in search.locked else [OFF]), 0, *search.steps[k].tolist()]
        for k in range(search.exits - 1)
    ]
    return max(objective(search, setting, price) for setting in itertools.product(*choices))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    exits=st.integers(1, 3),
    price=st.floats(0.01, 3),
    locked=st.booleans(),
)
def test_one_and_two_early_exits_are_exactly_the_best(
    seed: int, count: int, exits: int, price: float, locked: bool
) -> None:
    search = made_search(seed, count, exits, locked=(0,) if locked and exits > 1 else ())
    leavers, value = search.solve(price, search.empty())
    assert value == pytest.approx(objective(search, leavers, price), abs=1e-6)
    assert value == pytest.approx(best_of_all(search, price), abs=1e-6)


def test_three_early_exits_against_every_setting() -> None:
    gaps = []
    for seed, price in itertools.product(range(6), (0.2, 0.8)):
        search = made_search(seed, 16, 4)
        leavers, value = search.solve(price, search.empty())
        assert value == pytest.approx(objective(search, leavers, price), abs=1e-6)
        gaps.append(best_of_all(search, price) - value)
    assert min(gaps) >= -1e-6
    assert np.mean(np.array(gaps) < 1e-6) >= 0.7
    assert max(gaps) < 0.07  # about one sample of sixteen


def test_both_searches_agree_about_what_can_be_had() -> None:
    """Neither is exact from three early exits on: now and then one misses a few samples of 60."""
    gaps = []
    for seed, exits, price in itertools.product(range(8), (2, 4, 6), (0.1, 0.25, 1.0)):
        values = []
        for kind in (ThresholdSearch, DynamicSearch):
            search = made_search(seed, 60, exits, kind)
            leavers = search.best(price, [search.empty()])
            values.append(objective(search, leavers, price))
            assert values[-1] >= objective(search, search.empty(), price) - 1e-9
        gaps.append(values[1] - values[0])
    assert abs(np.mean(gaps)) < 0.01
    assert np.mean(np.abs(gaps) < 0.03) > 0.9
    assert max(np.abs(gaps)) < 0.13


def test_locked_exits_stay_on() -> None:
    search = made_search(3, 40, 5, locked=(0, 1))
    for price in (0.01, 0.3, 3.0):
        leavers, value = search.solve(price, search.empty())
        assert OFF not in leavers[:2]
        assert value == pytest.approx(objective(search, leavers, price), abs=1e-6)


def test_thresholds_are_quantised_evenly_by_rank() -> None:
    scores = np.random.default_rng(0).random((1000, 2)).astype(np.float32)
    search = DynamicSearch(scores, scores > 0.5, [0.5, 0.5], [0.0, 0.0], always=0.0, never=1.0)
    assert len(search.steps[0]) == DynamicSearch.places
    assert np.ptp(np.diff(search.steps[0])) <= 1
    for place, leavers in enumerate(search.steps[0].tolist()):
        fired = scores[:, 0] > np.float32(search.threshold(0, leavers))
        assert np.count_nonzero(fired) == leavers
        assert np.array_equal(fired, search.cells[0] <= place)


def test_calibrate_by_dynamic_programming() -> None:
    records = made_records(1500, 5, 6)
    climbed, planned = (
        calibrate(records, max_drop=1.0, search=search) for search in ("coordinate", "dynamic")
    )
    assert planned.drop <= 1.0 + 1e-9
    assert planned.cost == pytest.approx(climbed.cost, rel=0.05)
    for one, other in itertools.pairwise(planned.front):
        assert one.cost < other.cost
        assert one.accuracy < other.accuracy
