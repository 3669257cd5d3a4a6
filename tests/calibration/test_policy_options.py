"""What a policy's family is told before it learns: it reaches the point, or is refused."""

from typing import Any

import pytest
from made_records import made_records

from offramp.calibration import calibrate, evaluate, replay
from offramp.errors import OfframpError
from offramp.policies import Boosted


def test_boosted_keeps_what_it_is_told_and_is_held_against_its_own_sum() -> None:
    known, new = made_records(800), made_records(800, seed=1, split="test")
    point = calibrate(known, policy="boosted", policy_options={"keep": 0.25}, max_drop=1)
    assert point.policy["keep"] == 0.25
    assert point.asked.slug == "max-drop-1-keep-0.25"
    classes = known.logits.shape[-1]
    patient = Boosted([1.0] * known.num_exits, classes, keep=0.25)
    told = evaluate(point, new)
    right = replay(patient, new).prediction == new.labels
    assert told.full_accuracy == pytest.approx(100 * right.double().mean().item())
    assert told.drop == pytest.approx(told.full_accuracy - told.accuracy)


@pytest.mark.parametrize("kind", ["consistency", "gap"])
def test_risks_of_boosted_are_held_against_its_own_sum(kind: str) -> None:
    records = made_records(2000)
    asked = calibrate(records, policy="boosted", risk=0.3, risk_kind=kind)
    policy = asked.policy_object()
    held = records.under(Boosted, policy.parameters())
    patient = Boosted([1.0] * records.num_exits, records.logits.shape[-1])
    nobody = replay(patient, records)
    assert not asked.loss.along([nobody], held).any()
    assert asked.loss.along([nobody], records).any()  # the last exit alone says something else


def test_an_ensemble_of_the_last_exit() -> None:
    wished: dict[str, Any] = {"policy": "ztw_arithmetic", "max_drop": 5}
    usual = calibrate(made_records(600), **wished).policy
    whole = calibrate(made_records(600), **wished, policy_options={"include_last": True}).policy
    assert len(whole["weights"]) == len(usual["weights"]) + 1
    plain = calibrate(made_records(600), **wished, policy_options={"offsets": False}).policy
    assert not any(map(any, plain["offsets"]))


@pytest.mark.parametrize(
    ("policy", "options", "sentence"),
    [
        ("confidence", {"keep": 1}, r"policy 'confidence' has no option 'keep' \(known: none\)"),
        ("boosted", {"kepe": 1}, r"policy 'boosted' has no option 'kepe' \(known: keep\)"),
        ("boosted", {"keep": -1}, r"policy 'boosted': keep"),
        ("boosted", {"keep": True}, r"keep = True, but it must be a number"),
        ("ztw_geometric", {"offsets": 1}, r"offsets = 1, but it must be true or false"),
    ],
)
def test_what_it_does_not_know_is_refused(policy: str, options: dict, sentence: str) -> None:
    with pytest.raises(OfframpError, match=sentence):
        calibrate(made_records(300), policy=policy, policy_options=options, max_drop=5)
