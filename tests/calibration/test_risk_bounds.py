"""Bounds and selections against the card's numbers, exact sums, simulation and MAPIE."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import FWERFixedSequenceTesting
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value, get_r_hat_plus
from numpy.typing import NDArray

from offramp.calibration.risk.bounds import (
    betting,
    betting_bound,
    conformal_level,
    hoeffding_bentkus,
    samples_needed,
)
from offramp.calibration.risk.fixed_sequence import last_rejected
from offramp.calibration.risk.methods import METHODS, Level

Floats = NDArray[np.float64]


def p_value(mean: float, count: int, level: float, **options: object) -> float:
    return float(hoeffding_bentkus([mean], count, level, **options)[0])


def test_hoeffding_bentkus_by_the_card() -> None:
    assert p_value(0.02, 1000, 0.05) == pytest.approx(2.0819e-6, rel=1e-4)
    assert p_value(0.03, 500, 0.05) == pytest.approx(0.053981, rel=1e-4)
    assert p_value(0.03, 500, 0.05, binary=True) == pytest.approx(0.019858, rel=1e-4)
    assert p_value(0.0, 100, 0.05) == pytest.approx(0.0059205, rel=1e-4)
    assert p_value(0.06, 500, 0.05) == 1.0  # nothing is known above the level


def test_without_errors_so_many_samples_certify() -> None:
    for level, needed in ((0.01, 230), (0.02, 114), (0.05, 45)):
        assert samples_needed(level, 0.1) == needed
        for binary in (False, True):
            assert p_value(0.0, needed, level, binary=binary) <= 0.1
            assert p_value(0.0, needed - 1, level, binary=binary) > 0.1


def exact_tail(errors: int, count: int, level: float) -> float:
    terms = (math.comb(count, e) * level**e * (1 - level) ** (count - e) for e in range(errors + 1))
    return math.fsum(terms)


@given(count=st.integers(1, 200), share=st.floats(0, 1), level=st.floats(0.001, 0.99))
def test_binary_is_the_exact_tail_and_never_above_the_general_one(
    count: int, share: float, level: float
) -> None:
    errors = round(share * count)
    binary = p_value(errors / count, count, level, binary=True)
    assert binary == pytest.approx(exact_tail(errors, count, level), rel=1e-6, abs=1e-200)
    if errors <= level * count:
        assert binary <= p_value(errors / count, count, level) + 1e-12


@given(
    means=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    count=st.integers(1, 3000),
    level=st.floats(0.005, 0.9),
    binary=st.booleans(),
)
def test_hoeffding_bentkus_by_mapie(
    means: list[float], count: int, level: float, binary: bool
) -> None:
    rounded = np.round(np.array(means) * count) / count
    theirs = compute_hoeffding_bentkus_p_value(
        np.floor(rounded * count + 0.5) / count, count, level, binary
    )[:, 0]
    ours = hoeffding_bentkus(rounded, count, level, binary=binary)
    # Their ceil(n · R) may land one error higher by rounding: a larger p-value.
    more = hoeffding_bentkus(np.minimum(rounded + 1 / count, 1), count, level, binary=binary)
    above = rounded > level  # there the tail alone may exceed 1, and nobody cares
    assert np.all((ours <= theirs + 1e-9) | above)
    assert np.all((theirs <= np.maximum(more, ours) + 1e-9) | above)


def test_wsr_by_the_card() -> None:
    assert betting_bound(np.tile([1.0, *[0.0] * 19], 5), 0.1) == pytest.approx(0.130580, abs=1e-6)
    assert betting_bound(np.zeros(100), 0.1) == pytest.approx(0.023798, abs=1e-6)
    assert betting_bound(np.zeros(1000), 0.1) == pytest.approx(0.0023735, abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(each=st.floats(0, 0.3), half=st.integers(20, 150), delta=st.floats(0.02, 0.4))
def test_wsr_by_mapie(each: float, half: int, delta: float) -> None:
    """To a step of their grid, where the capital only grows: they add the largest capitals of the
    two halves of the samples, which else is not the largest of all."""
    levels = np.linspace(0, 1, 101)
    losses = np.full(2 * half, each)
    columns = np.repeat(losses[:, None], len(levels), axis=1)
    theirs = get_r_hat_plus(columns, levels, "rcps", "wsr", delta, 0.25)[1].min()
    assert theirs == pytest.approx(betting_bound(losses, delta), abs=0.01 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 200),
    delta=st.floats(0.01, 0.5),
    bound=st.sampled_from([1.0, 2.0]),
)
def test_the_betting_bound_is_where_betting_begins_to_reject(
    seed: int, count: int, delta: float, bound: float
) -> None:
    random = np.random.default_rng(seed)
    losses = bound * random.random(count) ** 3
    upper = betting_bound(losses, delta, bound=bound)
    column = losses[:, None]
    if upper < bound - 1e-6:
        assert betting(column, upper + 1e-6, delta, bound=bound)[0] <= delta
    assert betting(column, max(upper - 1e-6, 0), delta, bound=bound)[0] >= delta


def test_conformal_risk_control_by_the_card_and_mapie() -> None:
    assert conformal_level(100, 0.05) == pytest.approx(0.0405)
    assert conformal_level(1000, 0.05) == pytest.approx(0.04905)
    assert conformal_level(100, 0.02) == pytest.approx(0.0102)
    random = np.random.default_rng(0)
    losses = (random.random((137, 9)) < np.linspace(0, 0.12, 9)).astype(float)
    means, corrected = get_r_hat_plus(losses, np.linspace(1, 0, 9), "crc", None, None, None)
    assert ((corrected <= 0.05) == (means <= conformal_level(137, 0.05))).all()


@given(p_values=st.lists(st.floats(0, 1), max_size=8), delta=st.floats(0.01, 0.5))
def test_fixed_sequence_by_mapie(p_values: list[float], delta: float) -> None:
    rejected = last_rejected(p_values, delta)
    theirs = FWERFixedSequenceTesting().run(np.array(p_values), delta) if p_values else []
    assert rejected == (len(theirs) - 1 if len(theirs) else None)


def nested_losses(errors: list[int], count: int) -> Floats:
    """Sample i errs at every setting with more than i errors: (n, m)."""
    return (np.arange(count)[:, None] < np.array(errors)).astype(float)


def test_selection_by_the_card() -> None:
    lambdas = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]
    risks = [0, 0.002, 0.006, 0.012, 0.02, 0.028, 0.034, 0.046, 0.06, 0.08, 0.12]
    losses = nested_losses([round(500 * risk) for risk in risks], 500)
    level = Level(0.05, 0.1)
    chosen = {name: METHODS.get(name)().choose(losses, level) for name in METHODS.names()}
    assert lambdas[chosen["naive"]] == 0.3
    assert lambdas[chosen["crc"]] == 0.3
    assert lambdas[chosen["ltt"]] == 0.5
    general = hoeffding_bentkus(risks, 500, 0.05)
    assert general[6] > 0.1 >= general[5]  # the first not rejected would be one step too far
    # Known to be 0 or 1, the exact tail goes one step further, and no further than naively.
    assert lambdas[METHODS.get("ltt")().choose(losses, Level(0.05, 0.1, binary=True))] == 0.4


def test_losses_that_shrink_along_the_path_are_charged_at_their_largest() -> None:
    losses = np.zeros((400, 3))
    losses[:40, 1] = 1.0  # one in ten errs in the middle of the path, nobody at its end
    assert METHODS.get("crc")().choose(losses, Level(0.05, 0.1)) == 0
    assert METHODS.get("ltt")().choose(losses, Level(0.05, 0.1)) == 0
    assert METHODS.get("naive")().choose(losses, Level(0.05, 0.1)) == 2


def test_nothing_is_chosen_where_nothing_can_be_proved() -> None:
    few = np.zeros((20, 3))
    for name in ("ltt", "ucb", "crc"):
        method = METHODS.get(name)()
        assert method.choose(few, Level(0.01, 0.1)) is None
        assert method.needed(Level(0.01, 0.1)) > 20
    assert METHODS.get("crc")().needed(Level(0.01, 0.1)) == 99


def realised(name: str, level: Level, count: int, repeats: int) -> float:
    """How often the true risk of the chosen setting is above the level.

    A sample errs at a setting when its own uniform draw is below that setting's true risk; the
    risks pass the level in the middle of the path.
    """
    true = np.linspace(0, 2 * level.risk, 41)
    random = np.random.default_rng(7)
    method, broken = METHODS.get(name)(), 0
    for _ in range(repeats):
        losses = (random.random((count, 1)) < true).astype(float)
        chosen = method.choose(losses, level)
        broken += chosen is not None and true[chosen] > level.risk + 1e-12
    return broken / repeats


def test_simulated_coverage() -> None:
    level = Level(0.05, 0.1, binary=True)
    broken = {name: realised(name, level, 400, 1000) for name in ("ltt", "ucb", "naive")}
    slack = 2.6 * math.sqrt(0.1 * 0.9 / 1000)
    assert broken["ltt"] <= 0.1 + slack
    assert broken["ucb"] <= 0.1 + slack
    assert 0.3 < broken["naive"] < 0.7
    assert realised("ltt", Level(0.05, 0.1), 400, 300) <= broken["ltt"] + slack


def test_conformal_risk_control_holds_on_average() -> None:
    level, true = Level(0.05, 0.1), np.linspace(0, 0.1, 41)
    random, risks = np.random.default_rng(3), []
    for _ in range(600):
        losses = (random.random((100, 1)) < true).astype(float)
        risks.append(true[METHODS.get("crc")().choose(losses, level)])
    assert np.mean(risks) <= 0.05 + 2.6 * np.std(risks) / math.sqrt(600)


def test_gains_make_up_for_losses_in_the_betting_test_alone() -> None:
    losses = np.zeros((1000, 2))
    losses[::50, 1], losses[25::50, 1] = 1.0, -1.0  # 2 % lost, 2 % gained
    level = Level(0.02, 0.1, binary=True)
    assert METHODS.get("ucb")().choose(losses, level) == 1
    assert METHODS.get("ltt")().choose(losses, level) == 0
