"""Calibrate: promises, fronts, targets nobody reaches, and what is refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_costs, made_meta, made_records

from offramp.calibration import OperatingPoint, Records, block_costs, calibrate, replay
from offramp.calibration import static_points as static_points_of
from offramp.calibration.front import locked_exits
from offramp.calibration.splits import cut
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies import POLICIES

CLASSIFYING = [n for n in POLICIES.names() if "classification" in POLICIES.get(n).tasks]


def check_numbers(point: OperatingPoint, records: Records) -> None:
    """The point's numbers are those of replaying its policy where its thresholds were chosen."""
    records = cut(records, point.samples)["thresholds"]
    decisions = replay(point.policy_object(), records, point.active)
    right = (decisions.prediction == records.labels).double().mean().item()
    assert point.accuracy == pytest.approx(100 * right)
    assert point.exit_share == pytest.approx(decisions.exit_share)
    assert point.cost == pytest.approx(
        point.costs.mean_cost(decisions.exit_share, point.active), rel=1e-9
    )
    assert point.drop == pytest.approx(point.full_accuracy - point.accuracy)


@pytest.mark.parametrize("policy", CLASSIFYING)
@pytest.mark.parametrize("target", [{"max_drop": 1.0}, {"max_cost": 0.7}])
def test_promises_hold_where_they_were_made(policy: str, target: dict[str, float]) -> None:
    records = made_records(600, 5, 6)
    point = calibrate(records, policy=policy, **target)
    check_numbers(point, records)
    if "max_drop" in target:
        assert point.drop <= 1.0 + 1e-9
    else:
        assert point.cost_share <= 0.7 + 1e-9
    assert point.speedup_macs is not None
    least = 1.05 if policy == "voting" else 1.1  # a majority of all exits takes half of them
    assert point.speedup_macs > least


@pytest.mark.parametrize("policy", CLASSIFYING)
def test_front_is_sorted_undominated_and_holds_the_choice(policy: str) -> None:
    point = calibrate(made_records(600, 5, 6), policy=policy, max_drop=1.0)
    for one, other in itertools.pairwise(point.front):
        assert one.cost < other.cost
        assert one.accuracy < other.accuracy
    assert all(
        other.cost >= point.cost or other.accuracy < point.full_accuracy - 1.0
        for other in point.front
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), drop=st.floats(0, 5), count=st.integers(2, 200))
def test_any_drop_of_zero_or_more_is_reachable(seed: int, drop: float, count: int) -> None:
    records = made_records(count, 4, 3, seed=seed)
    point = calibrate(records, max_drop=drop)
    assert point.drop <= drop + 1e-9
    check_numbers(point, records)


def test_a_looser_promise_is_never_slower() -> None:
    records = made_records(1500, 5, 6)
    costs = [calibrate(records, max_drop=drop).cost for drop in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert costs == sorted(costs, reverse=True)
    budgets = [calibrate(records, max_cost=cost).accuracy for cost in (0.3, 0.5, 0.7, 1.0)]
    assert budgets == sorted(budgets)


def test_thresholds_lie_midway_between_observed_scores() -> None:
    records = made_records(400, 4, 5)
    point = calibrate(records, max_drop=1.0)
    assert point.thresholds is not None
    for k in point.active:
        scores = np.unique(records.confidence[:, k].numpy())
        above = np.searchsorted(scores, np.float32(point.thresholds[k]), side="right")
        if 0 < above < len(scores):
            middle = (float(scores[above - 1]) + float(scores[above])) / 2
            assert point.thresholds[k] == pytest.approx(middle, abs=1e-7)


def test_expensive_heads_are_switched_off() -> None:
    records = made_records(800, 5, 6)
    cheap = calibrate(records, max_drop=1.0, costs=made_costs(5, head=0.0))
    dear = calibrate(records, max_drop=1.0, costs=made_costs(5, head=60.0))
    assert len(dear.active) < len(cheap.active)


def test_targets_nobody_reaches_name_the_closest() -> None:
    records = made_records(300, 4, 5)
    with pytest.raises(OfframpError, match=r"no point loses at most -50 points: the closest loses"):
        calibrate(records, max_drop=-50)
    with pytest.raises(OfframpError, match=r"the closest takes 0\.2"):
        calibrate(records, max_cost=0.01)


def test_refusals() -> None:
    records = made_records(60, 4, 5)
    with pytest.raises(OfframpError, match="calibration on the test split"):
        calibrate(made_records(60, 4, 5, split="test"), max_drop=1)
    for target in ({}, {"max_drop": 1, "max_cost": 0.5}):
        with pytest.raises(OfframpError, match="exactly one target"):
            calibrate(records, **target)
    with pytest.raises(OfframpError, match="max_cost = 0"):
        calibrate(records, max_cost=0)
    with pytest.raises(OfframpError, match="max_drop = nan"):
        calibrate(records, max_drop=float("nan"))
    with pytest.raises(OfframpError, match="did you mean 'entropy'"):
        calibrate(records, policy="entropie", max_drop=1)
    with pytest.raises(OfframpError, match="cost table has 5 exits, the records 4"):
        calibrate(records, max_drop=1, costs=made_costs(5))
    with pytest.raises(OfframpError, match="no temperatures"):
        calibrate(records, policy="patience", max_drop=1, temperatures=True)
    with pytest.raises(OfframpError, match="certainty = 1"):
        calibrate(records, max_drop=1, certainty=1.0)


def test_certainty_buys_safety_with_cost() -> None:
    records = made_records(1000, 5, 6)
    plain, sure = (calibrate(records, max_drop=1.0, certainty=c) for c in (None, 0.95))
    assert sure.cost >= plain.cost
    assert sure.drop + 1.6 * sure.drop_error <= 1.0 + 1e-6


def test_temperatures_are_fit_apart_and_kept_in_the_policy() -> None:
    records = made_records(600, 4, 5)
    point = calibrate(records, max_drop=1.0, temperatures=True)
    check_numbers(point, records)
    assert any(value != 1.0 for value in point.policy["temperatures"])
    assert point.samples == {"fit": 90, "thresholds": 510}


def test_time_tables_are_reported_or_searched() -> None:
    records = made_records(400, 4, 5)
    time = CostTable(
        unit="ms", body=(1.0,) * 4, head=(0.5, 0.5, 0.5, 0.1), full=4.0, meta={"hardware": "lap"}
    )
    reported = calibrate(records, max_drop=1.0, time=time)
    assert reported.costs.unit == "MACs"
    assert reported.speedup_time == time.speedup(reported.exit_share, reported.active)
    searched = calibrate(records, max_cost=0.8, costs=time)
    assert searched.promise.unit == "ms"
    assert searched.cost <= 0.8 * 4.0 + 1e-9
    assert searched.speedup_macs is not None  # from the table in the records
    assert searched.hardware == "lap"


def test_without_any_table_blocks_count() -> None:
    records = made_records(300, 4, 5, costs=None, positions=[1, 2, 4], blocks=6)
    assert block_costs(records).leave_cost() == (1.0, 2.0, 4.0, 6.0)
    point = calibrate(records, max_drop=1.0)
    assert point.promise.unit == "points"
    assert point.costs.unit == "blocks"
    assert point.speedup_macs is None
    assert point.speedup_layers == pytest.approx(6.0 / point.cost)


def test_dependent_exits_and_their_predecessors_stay_on() -> None:
    assert locked_exits([True, True, True]) == ()
    assert locked_exits([True, False, True, True]) == (0, 1)
    for policy in CLASSIFYING:
        records = made_records(300, 4, 5, standalone=[True, False, True, True])
        point = calibrate(records, policy=policy, max_drop=1.0)
        assert {0, 1} <= set(point.active)
        assert all({0, 1} <= set(other.active) for other in point.front)


def test_static_points() -> None:
    records = made_records(300, 4, 5)
    points = static_points_of(records, made_costs(4))
    assert [p.name for p in points] == made_meta(4).exit_names
    assert [p.accuracy for p in points] == pytest.approx([100 * a for a in records.accuracy])
    assert [p.cost for p in points] == pytest.approx([110 / 401, 210 / 401, 310 / 401, 1.0])
    assert [p.layers for p in points] == [4.0, 2.0, 4 / 3, 1.0]
    assert points[-1].speedup == pytest.approx(1.0)
    locked = made_records(300, 4, 5, standalone=[True, False, True, True])
    assert static_points_of(locked, made_costs(4))[2].cost == pytest.approx(330 / 401)
    assert static_points_of(locked, made_costs(4))[0].cost == pytest.approx(110 / 401)


def test_degenerate_records() -> None:
    one = calibrate(made_records(1, 3, 4), max_drop=0.0)
    assert one.drop <= 0.0
    only_final = calibrate(made_records(20, 1, 4), max_drop=0.0)
    assert only_final.active == ()
    assert only_final.exit_share == (1.0,)
