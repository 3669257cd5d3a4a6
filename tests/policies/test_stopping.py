"""Gates read one by one: where they stop, and where their mass goes."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_family import EXITS, records

from offramp.calibration import calibrate, replay
from offramp.errors import OfframpError
from offramp.policies import Gated, Stopping
from offramp.policies.stopping import stopping_mass

SHARES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12)


def test_a_sample_leaves_at_the_first_gate_of_one_half() -> None:
    gate = records().signals["gate"][:, : EXITS - 1].sigmoid()
    fires = torch.cat([gate >= 0.5, torch.ones(len(gate), 1, dtype=torch.bool)], dim=1)
    found = replay(Stopping.rule(EXITS), records()).exit
    assert torch.equal(found, fires.int().argmax(dim=1))
    assert len(found.unique()) > 2


def test_shares_of_mass_leave_no_later_than_gates_by_themselves() -> None:
    by_mass = replay(Gated.rule(EXITS), records()).exit
    by_themselves = replay(Stopping.rule(EXITS), records()).exit
    assert (by_mass <= by_themselves).all()
    assert (by_mass < by_themselves).any()


@given(SHARES)
def test_mass_sums_to_one(gates: list[float]) -> None:
    mass = stopping_mass(torch.tensor([gates]))
    assert (mass.early >= 0).all()
    assert (mass.early.sum() + mass.final).item() == pytest.approx(1, abs=1e-5)


def test_mass_of_three_gates() -> None:
    mass = stopping_mass(torch.tensor([[0.5, 0.2, 1.0]]))
    assert mass.early[0].tolist() == pytest.approx([0.5, 0.1, 0.4])
    assert mass.final.item() == 0
    assert mass.hazard[0].tolist() == pytest.approx([0.5, 0.2, 1.0])


def test_thresholds_are_searched_on_the_gates() -> None:
    point = calibrate(records(), policy="stopping", max_cost=0.7)
    assert point.policy["name"] == "stopping"
    assert point.cost_share <= 0.7
    assert len({setting.cost for setting in point.front}) > 3


def test_exits_without_gates_are_refused() -> None:
    with pytest.raises(OfframpError, match="signal 'gate', which exit 1 does not give"):
        Stopping.rule(3).step(1, SimpleNamespace(logits=torch.zeros(1, 3)), ())
