"""Settings of path policies, what families propose themselves, and the oracle."""

import itertools
import time
from functools import cache

import numpy as np
import pytest
import torch
from made_records import made_costs, made_records

from offramp.calibration import Records, calibrate, replay
from offramp.calibration.enumeration import Columns, enumerate_settings
from offramp.calibration.front import measure
from offramp.calibration.oracle import oracle, oracle_front
from offramp.calibration.path_search import path_choices, path_settings, walk_path
from offramp.policies import PCEE, POLICIES, PathPolicy, Patience, Policy

PATHS = [name for name in POLICIES.names() if issubclass(POLICIES.get(name), PathPolicy)]
COSTS = made_costs(5)


@cache
def made(count: int = 600) -> Records:
    return made_records(count, 5, 6)


@pytest.mark.parametrize("name", PATHS)
def test_settings_are_measured_as_replay_measures_them(name: str) -> None:
    family, records = POLICIES.get(name), made()
    settings = path_settings(family, records, COSTS, fitted=family.fit(records))
    assert {setting.active for setting in settings} == set(path_choices(4, ()))
    for setting in settings[:: len(settings) // 25]:
        decisions = replay(setting.policy, records, setting.active)
        assert measure(decisions, records, COSTS, setting.active) == setting.measure


@pytest.mark.parametrize("name", PATHS)
def test_one_walk_decides_for_any_threshold(name: str) -> None:
    family, records, active = POLICIES.get(name), made(200), (0, 2)
    fitted = family.fit(records)
    walk = walk_path(family.shared(1.0, 5, **fitted), records, active)
    for threshold in (0.2, 0.5, 0.9):
        wanted = replay(family.shared(threshold, 5, **fitted), records, active)
        found = walk.decide([threshold] * 3)
        assert torch.equal(found.exit, wanted.exit)
        assert torch.equal(found.prediction, wanted.prediction)


@pytest.mark.parametrize("name", PATHS)
def test_thresholds_per_exit_beat_every_shared_one(name: str) -> None:
    family, records = POLICIES.get(name), made()
    fitted, active = family.fit(records), (0, 1, 2, 3)
    settings = path_settings(family, records, COSTS, fitted=fitted, smooth=False)
    for policy in family.candidates(5, **fitted):
        shared = measure(replay(policy, records, active), records, COSTS, active)
        for price in (0.1, 0.3, 1.0):
            best = max(s.measure.accuracy - price * s.measure.cost for s in settings)
            assert best >= shared.accuracy - price * shared.cost - 0.005


def test_a_promise_is_met_more_closely_when_the_search_knows_it() -> None:
    family = POLICIES.get("best_of")
    found = []
    for holds in (None, lambda measured: measured.cost <= 0.6):
        settings = enumerate_settings(family, made(), COSTS, holds=holds)
        kept = [s.measure for s in settings if s.measure.cost <= 0.6]
        found.append((max(kept, key=lambda m: m.accuracy).accuracy, len(settings)))
    assert found[1][0] >= found[0][0]
    assert found[1][1] > found[0][1]


def test_fitted_numbers_may_come_from_other_records() -> None:
    family = POLICIES.get("ztw_geometric")
    fitted = family.fit(made_records(300, 5, 6, seed=1))
    settings = enumerate_settings(family, made(), COSTS, fitted=fitted)
    assert settings[0].policy.parameters()["weights"] == fitted["weights"]


def test_an_ensemble_never_answers_worse_than_confidence_here() -> None:
    ensemble, plain = (
        calibrate(made(3000), policy=name, max_cost=0.6) for name in ("ztw_geometric", "confidence")
    )
    assert ensemble.accuracy > plain.accuracy


def test_columns_are_shared_by_policies_that_read_the_same() -> None:
    columns = Columns(made())
    assert columns.of(PCEE(1, 0.3)) is columns.of(PCEE(3, 0.7))
    assert columns.of(Patience(1)).shape == (5, 600)
    assert columns.of(POLICIES.get("voting").shared(1.0, 5, num_classes=6)) is None


def test_budgets_are_met_and_spent() -> None:
    for budget in (0.4, 0.6, 0.8):
        point = calibrate(made(3000), policy="budgeted", max_cost=budget)
        assert budget - 0.03 < point.cost_share <= budget + 1e-9


def oracle_accuracy(records: Records, active: tuple[int, ...]) -> float:
    on = [*active, records.num_exits - 1]
    return records.correct[:, on].any(dim=1).double().mean().item()


def test_the_oracle_leaves_at_the_first_right_exit() -> None:
    records = made()
    decisions = oracle(records, (1, 3))
    found = measure(decisions, records, COSTS, (1, 3))
    assert found.accuracy == pytest.approx(oracle_accuracy(records, (1, 3)))
    for n in range(50):
        right = [k for k in (1, 3, 4) if records.correct[n, k]]
        assert decisions.exit[n] == (right[0] if right else 1)


@pytest.mark.parametrize("name", ["confidence", "patience", "pcee", "budgeted", "margin"])
def test_nobody_beats_the_oracle(name: str) -> None:
    records = made()
    for setting in calibrate(records, policy=name, max_cost=0.9).front:
        corners = oracle_front(records, COSTS, setting.active)
        costs = [corner.cost for corner in corners]
        assert costs == sorted(costs)
        bound = np.interp(setting.cost_share, costs, [corner.accuracy for corner in corners])
        assert setting.accuracy / 100 <= bound + 1e-9


def test_the_oracles_front_bends_one_way() -> None:
    corners = oracle_front(made(), COSTS)
    slopes = [(b.accuracy - a.accuracy) / (b.cost - a.cost) for a, b in itertools.pairwise(corners)]
    assert slopes == sorted(slopes, reverse=True)
    assert corners[0].exit_share[0] == 1.0


SLOW: list[type[Policy]] = [POLICIES.get(name) for name in (*PATHS, "patience", "pcee", "budgeted")]


@pytest.mark.slow
@pytest.mark.parametrize("family", SLOW, ids=lambda family: family.name)
def test_fifty_thousand_by_twelve_by_a_hundred_in_ten_seconds(family: type[Policy]) -> None:
    records, costs = made_records(50_000, 12, 100), made_costs(12)
    enumerate_settings(family, made_records(50, 12, 100), costs)  # imports
    start = time.process_time()
    assert len(enumerate_settings(family, records, costs)) > 20
    assert time.process_time() - start < 20  # ten on an idle laptop core
