"""Policies on numbers: the card's example, replay equal to live, and who is refused."""

from types import SimpleNamespace

import pytest
import torch

import offramp
from offramp.calibration import replay
from offramp.data import batches
from offramp.errors import OfframpError
from offramp.policies import POLICIES, Settled
from regression_model import blobs, regression_model


def exits_used(values: list[float], patience: int, tolerance: float) -> int:
    policy = Settled(patience, tolerance)
    memory = policy.start(1)
    for k, value in enumerate(values):
        outputs = SimpleNamespace(logits=torch.tensor([[value]]))
        stop, answer, memory = policy.step(k, outputs, memory)
        assert answer is outputs.logits
        if stop.item():
            return k + 1
    return len(values)


@pytest.mark.parametrize(("patience", "used"), [(1, 4), (2, 5), (3, 5)])
def test_multi_exit_card_check_6(patience: int, used: int) -> None:
    assert exits_used([10, 14, 13, 12.8, 12.9], patience, 0.5) == used


def test_the_tolerance_is_strict_and_the_first_exit_settles_nothing() -> None:
    assert exits_used([5.0, 5.5, 5.5], 1, 0.5) == 3
    assert exits_used([0.0, 0.0, 0.0], 1, 0.0) == 3
    assert exits_used([0.0, 0.0, 0.0], 1, 1e-9) == 2
    assert exits_used([1.0, 1.1, 9.0, 9.1, 9.2], 2, 0.5) == 5  # a jump starts the count anew


@pytest.mark.parametrize("name", POLICIES.names())
def test_only_policies_for_numbers_run_on_a_regression_model(name: str) -> None:
    family = POLICIES.get(name)
    if "regression" in family.tasks:
        family.check_task("regression")
        return
    with pytest.raises(OfframpError, match=f"policy '{name}' is for .*but the model is for regr"):
        family.check_task("regression")


@pytest.mark.parametrize("policy", ["confidence", "entropy", "patience"])
def test_refusals_reach_every_door(policy: str) -> None:
    model, data = regression_model(), blobs()
    member = POLICIES.get(policy).candidates(model.num_exits)[0]
    records = offramp.collect(model, data, progress=False)
    for attempt in (
        lambda: offramp.calibrate(records, policy=policy, max_drop=1.0),
        lambda: replay(member, records),
        lambda: offramp.compile(model, policy=member),
    ):
        with pytest.raises(OfframpError, match=r"for regression \(use: .*settled"):
            attempt()


@pytest.mark.parametrize("active", [(0, 1, 2), (0, 2), ()])
@pytest.mark.parametrize("patience", [1, 2])
def test_replay_decides_as_the_runner_does(active: tuple[int, ...], patience: int) -> None:
    model, data = regression_model(), blobs()
    records = offramp.collect(model, data, split="test", progress=False)
    moved = records.prediction.diff(dim=1).abs()[:, :patience].amax(dim=1)
    policy = Settled(patience, moved.median().item() + 1e-4)  # half of them settle at once
    replayed = replay(policy, records, active)
    runner = offramp.compile(model, policy=policy, active=active)
    stream = batches(data.split("test"), batch_size=64, preprocessing=model.preprocessing)
    live = [runner(batch.images) for batch in stream]
    assert torch.equal(torch.cat([said.exit for said in live]), replayed.exit)
    values = torch.cat([said.values for said in live])
    torch.testing.assert_close(values, replayed.prediction, rtol=1e-4, atol=1e-4)
    if len(active) == 3:
        assert len(replayed.exit.unique()) > 1


def test_proposals_lie_between_changes_that_were_seen() -> None:
    records = offramp.collect(regression_model(), blobs(), progress=False)
    active = (0, 2)
    costs = records.meta.costs
    assert costs is not None
    proposed = Settled.propose(records, costs, active)
    moved = (records.prediction[:, 2] - records.prediction[:, 0]).abs()
    shares = [(replay(p, records, active).exit == 2).double().mean().item() for p in proposed]
    assert not any((moved == p.tolerance).any() for p in proposed)
    assert shares[-2:] == [1.0, 0.0]
    assert len({round(share, 3) for share in shares}) > 10
    assert Settled.propose(records, costs, (1,)) == [Settled(1, 0.0)]
