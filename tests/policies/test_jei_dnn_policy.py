"""JEI-DNN's rule: the card's masses, hazards and exits; live as replayed."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_family import EXITS, meta, records

from offramp.calibration import Records, calibrate, replay
from offramp.errors import OfframpError
from offramp.policies.jei_dnn import HALF, Gated, exit_mass
from offramp.runtime.compiling import compile_runner
from tiny import tiny_model

EXAMPLES = [  # gates, mass at the early exits, final mass, hazards, 1-based exit
    ([0.3, 0.5, 0.4], [0.3, 0.5, 0.2], 0.0, [0.3, 0.714286, 1.0], 2),
    ([0.4, 0.35, 0.2], [0.4, 0.35, 0.2], 0.05, [0.4, 0.583333, 0.8], 2),
    ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1], 0.7, [0.1, 0.111111, 0.125], 4),
    ([0.45, 0.45, 0.45], [0.45, 0.45, 0.1], 0.0, [0.45, 0.818182, 1.0], 2),
]


def said(gate: float) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.zeros(1, 3), gate=torch.logit(torch.tensor([gate])))


def leaves(policy: Gated, gates: list[float]) -> int:
    memory = policy.start(1)
    for k, gate in enumerate(gates):
        stop, _, memory = policy.step(k, said(gate), memory)
        if stop.item():
            return k + 1
    return len(gates) + 1


@pytest.mark.parametrize(("gates", "early", "final", "hazards", "leaving"), EXAMPLES)
def test_the_cards_masses(
    gates: list[float], early: list[float], final: float, hazards: list[float], leaving: int
) -> None:
    mass = exit_mass(torch.tensor([gates]))
    assert mass.early[0].tolist() == pytest.approx(early, abs=1e-6)
    assert mass.final.item() == pytest.approx(final, abs=1e-6)
    assert mass.hazard[0].tolist() == pytest.approx(hazards, abs=1e-5)
    assert leaves(Gated.rule(4), gates) == leaving


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12))
def test_mass_sums_to_one_and_the_policy_walks_it(gates: list[float]) -> None:
    g = torch.tensor([gates])
    mass = exit_mass(g)
    assert (mass.early >= 0).all()
    assert (mass.early <= g).all()
    assert mass.early.sum() + mass.final == pytest.approx(1, abs=1e-5)
    assert ((mass.hazard >= 0) & (mass.hazard <= 1)).all()
    policy = Gated.rule(len(gates) + 1)
    memory = policy.start(1)
    for k, gate in enumerate(gates):
        _, _, memory, score = policy.scored_step(k, said(gate), memory)
        if mass.early[0, :k].sum() < 0.999:  # where rounding decides how little is left
            assert score.item() == pytest.approx(mass.hazard[0, k].item(), abs=1e-3)


@given(st.integers(1, 6), st.integers(0, 6))
def test_ideal_gates_put_all_mass_where_it_belongs(exits: int, place: int) -> None:
    gates = (torch.arange(exits) >= place).float()
    mass = exit_mass(gates[None])
    assert mass.early[0].tolist() == [float(k == place) for k in range(exits)]
    assert mass.final.item() == float(place >= exits)


def test_a_hazard_of_one_half_stops_and_less_does_not() -> None:
    assert leaves(Gated.rule(2), [0.5]) == 1
    assert leaves(Gated.rule(2), [0.4999]) == 2
    assert torch.tensor(HALF).item() == HALF < 0.5
    assert torch.nextafter(torch.tensor(HALF), torch.tensor(1.0)).item() == 0.5


def test_replay_leaves_where_the_definition_does() -> None:
    gates = records().signals["gate"][:, : EXITS - 1].sigmoid()
    hazard = exit_mass(gates).hazard
    fires = torch.cat([hazard >= 0.5, torch.ones(len(gates), 1, dtype=torch.bool)], dim=1)
    expected = fires.int().argmax(dim=1)
    assert torch.equal(replay(Gated.rule(EXITS), records()).exit, expected)
    assert len(expected.unique()) > 2


def test_exits_that_are_off_hold_no_mass() -> None:
    found = replay(Gated.rule(EXITS), records(), active=(1, 3)).exit
    hazard = exit_mass(records().signals["gate"][:, [1, 3]].sigmoid()).hazard
    expected = torch.where(hazard[:, 0] >= 0.5, 1, torch.where(hazard[:, 1] >= 0.5, 3, EXITS - 1))
    assert torch.equal(found, expected)


def test_live_is_replayed() -> None:
    model = tiny_model("jei_dnn")
    with torch.no_grad():
        for head in model.heads:
            head.head.classifiers.heads[0].weight.mul_(15)
            head.gate.weight.copy_(torch.tensor([[2.0, -0.5, 1.0, -0.5]]))
            head.gate.bias.fill_(-2.3)
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answers = model(images)
    logits = torch.stack([outputs.logits for outputs in answers], dim=1)
    silent = torch.full((24,), torch.nan)
    gate = torch.stack([getattr(outputs, "gate", silent) for outputs in answers], dim=1)
    made = Records.from_logits(
        logits, torch.zeros(24, dtype=torch.int64), meta=meta(4), signals={"gate": gate}
    )
    policy = Gated.rule(4)
    live, replayed = compile_runner(model, policy=policy)(images), replay(policy, made)
    assert torch.equal(live.exit, replayed.exit)
    assert torch.equal(live.labels, replayed.prediction)
    assert len(live.exit.unique()) > 1


def test_other_thresholds_make_a_front_of_one_model() -> None:
    point = calibrate(records(), policy="jei_dnn", max_cost=0.7)
    assert point.policy["name"] == "jei_dnn"
    assert point.cost_share <= 0.7
    assert len({setting.cost for setting in point.front}) > 3


def test_exits_without_gates_are_refused() -> None:
    with pytest.raises(OfframpError, match="signal 'gate', which exit 1 does not give"):
        Gated.rule(3).step(1, SimpleNamespace(logits=torch.zeros(1, 3)), (torch.zeros(1),))
