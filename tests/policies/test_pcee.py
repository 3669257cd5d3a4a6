"""PCEE: the card's example, and what it is at a patience of one."""

from types import SimpleNamespace

import pytest
import torch
from policy_family import records

from offramp.calibration import replay
from offramp.policies import PCEE, Entropy

CARD = [0.9, 0.4, 0.6, 0.3, 0.2, 0.1]  # nats


def exits_used(entropies: list[float], patience: int, tau: float) -> int:
    policy = PCEE(patience, tau)
    memory = policy.start(1)
    for k, entropy in enumerate(entropies):
        stop, memory = policy.decide(k, torch.tensor([-entropy]), memory)
        if stop.item():
            return k + 1
    return len(entropies)


@pytest.mark.parametrize(("patience", "used"), [(1, 2), (2, 5), (3, 6)])
def test_multi_exit_card_item_6(patience: int, used: int) -> None:
    assert exits_used(CARD, patience, 0.5) == used


def test_entropy_must_be_below_strictly() -> None:
    assert exits_used([0.5, 0.5, 0.25], 1, 0.5) == 3


def test_predictions_need_not_agree() -> None:
    sure = torch.tensor([[9.0, 0.0]])
    policy = PCEE(2, 0.5)
    _, _, memory = policy.step(0, SimpleNamespace(logits=sure), policy.start(1))
    stop, _, _ = policy.step(1, SimpleNamespace(logits=sure.flip(-1)), memory)
    assert stop.item()


def test_patience_of_one_is_the_entropy_policy() -> None:
    for tau in (0.3, 0.7, 1.1):
        entropy = Entropy.shared(-tau, records().num_exits)
        assert torch.equal(replay(PCEE(1, tau), records()).exit, replay(entropy, records()).exit)


def test_proposals_lie_between_entropies_that_were_seen() -> None:
    seen = records().entropy[:, [0, 2]].double()
    members = PCEE.propose(records(), None, (0, 2))
    assert {policy.patience for policy in members[:-1]} == {1, 2}
    shares = [(seen < policy.entropy).double().mean().item() for policy in members[:-1]]
    assert 0 < min(shares) < 0.12
    assert 0.88 < max(shares) < 1
    assert all((seen - policy.entropy).abs().min() > 0 for policy in members[:-1])
    assert members[-1].entropy == 0  # and one that never stops early
    assert len(PCEE.propose(records(), None, ())) == 1
