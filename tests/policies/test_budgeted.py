"""MSDNet's budgeted batches: the card's shares, ratios and thresholds."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_family import records

from offramp.calibration import replay
from offramp.calibration.budget import budgeted_thresholds
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies import Budgeted, Confidence
from offramp.policies.budgeted import Quotas, exit_shares, ratio_for

COSTS = (0.25, 0.5, 0.75, 1.0)
SCORES = torch.tensor(
    [
        [0.9, 0.2, 0.8, 0.4, 0.6, 0.3, 0.7, 0.5],
        [0.95, 0.3, 0.85, 0.6, 0.9, 0.2, 0.5, 0.99],
        [1.0] * 8,
    ]
).T


def mean_cost(ratio: float) -> float:
    return sum(q * c for q, c in zip(exit_shares(ratio, 4), COSTS, strict=True))


def test_shares_of_card_item_4() -> None:
    expected = [0.533333, 0.266667, 0.133333, 0.066667]
    assert exit_shares(0.5, 4) == pytest.approx(expected, abs=1e-6)
    found = [mean_cost(ratio) for ratio in (0.5, 1.0, 1.5)]
    assert found == pytest.approx([0.433333, 0.625, 0.746154], abs=1e-6)
    ratio = ratio_for(COSTS, 0.6)
    assert ratio == pytest.approx(0.922982, abs=1e-6)
    expected = [0.280807, 0.259180, 0.239218, 0.220794]
    assert exit_shares(ratio, 4) == pytest.approx(expected, abs=1e-6)


@given(target=st.floats(0.2501, 0.9999))
def test_any_mean_cost_in_reach_is_solved(target: float) -> None:
    assert mean_cost(ratio_for(COSTS, target)) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize("target", [0.25, 1.0, 2.0])
def test_mean_costs_out_of_reach_are_refused(target: float) -> None:
    with pytest.raises(OfframpError, match=r"must be between 0\.25.* and 1, at the last"):
        ratio_for(COSTS, target)


def test_thresholds_of_card_item_5() -> None:
    quotas = Quotas(SCORES)
    found = quotas.thresholds((0.5, 0.25, 0.25))
    assert found == pytest.approx((0.6, 0.6, -math.inf))
    strict = quotas.above((0.5, 0.25, 0.25))
    assert strict[:2] == pytest.approx((0.55, 0.55))  # midway to the next lower score
    waiting, left = torch.ones(8, dtype=torch.bool), []
    for k, threshold in enumerate(strict):
        leaving = waiting & (SCORES[:, k] > (threshold if k < 2 else -1))
        left.append(int(leaving.sum()))
        waiting &= ~leaving
    assert left == [4, 2, 2]


def test_empty_quotas_and_quotas_nobody_can_fill() -> None:
    assert Quotas(SCORES).thresholds((0.1, 0.8, 0.1)) == (math.inf, 0.5, -math.inf)
    assert Quotas(SCORES).thresholds((0.5, 0.7, 0.0)) == (pytest.approx(0.6), math.inf, -math.inf)
    assert Quotas(SCORES).above((0.1, 0.8, 0.1))[0] == Budgeted.never
    assert Quotas(SCORES).above((1.0, 0.0, 0.0))[0] == Budgeted.always


def test_equal_scores_leave_together() -> None:
    tied = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1, 0.1], [1.0] * 6]).T
    assert Quotas(tied).thresholds((1 / 3, 2 / 3))[0] == 0.5
    assert (tied[:, 0] > Quotas(tied).above((1 / 3, 2 / 3))[0]).sum() == 4


def table() -> CostTable:
    return CostTable(unit="MACs", body=(10.0,) * 5, head=(1.0,) * 5, full=51.0)


@pytest.mark.parametrize("active", [None, (0, 2, 3), (1,)])
def test_the_mean_cost_is_met_on_the_samples_it_was_made_for(
    active: tuple[int, ...] | None,
) -> None:
    made, costs = records(1000), table()
    on = (0, 1, 2, 3) if active is None else active
    for target in (0.5, 0.7, 0.9):
        policy = budgeted_thresholds(made, costs, target, active)
        assert isinstance(policy, Confidence)
        share = replay(policy, made, active).exit_share
        assert costs.mean_cost(share, on) / costs.full == pytest.approx(target, abs=0.005)


def test_proposals_cover_the_costs_between_first_and_last() -> None:
    made, costs, active = records(1000), table(), (0, 2, 3)
    members = Budgeted.propose(made, costs, active)
    found = [costs.mean_cost(replay(p, made, active).exit_share, active) / 51 for p in members]
    assert found == sorted(found)
    assert found[0] < 0.25
    assert found[-1] > 0.95
    assert max(b - a for a, b in itertools.pairwise(found)) < 0.03
    assert Budgeted.propose(made, costs, ())[0].thresholds == (1.0,) * 5
