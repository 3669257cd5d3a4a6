"""Learned to exit: it reads a signal, and says where there is none."""

from types import SimpleNamespace

import pytest
import torch
from policy_family import EXITS, meta, records

from offramp.calibration import Records, calibrate
from offramp.errors import OfframpError
from offramp.policies import Learned


def outputs(*certainty: float) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.zeros(len(certainty), 3), certainty=torch.tensor(certainty))


def test_stops_above_the_threshold_whatever_the_logits() -> None:
    policy = Learned([0.5, 0.8, 0.0])
    assert policy.step(0, outputs(0.4, 0.5, 0.6), ())[0].tolist() == [False, False, True]
    assert policy.step(1, outputs(0.6, 0.9, 1.0), ())[0].tolist() == [False, True, True]


def test_an_exit_without_certainty_is_never_sure() -> None:
    silent = outputs(float("nan"), 0.0)
    assert Learned.shared(Learned.always, 2).step(0, silent, ())[0].tolist() == [False, True]
    with pytest.raises(OfframpError, match="signal 'certainty', which exit 1 does not give"):
        Learned([0.5, 0.5]).step(1, SimpleNamespace(logits=torch.zeros(1, 3)), ())
    Learned([0.5, 0.5]).final_answer(1, SimpleNamespace(logits=torch.zeros(1, 3)), ())


def test_thresholds_are_searched_on_the_signal() -> None:
    made = records(600)
    certainty = made.correct.float() * 0.6 + 0.3 * made.confidence
    certainty[:, -1] = torch.nan  # as the backbone's own head is recorded
    knowing = Records.from_logits(
        made.logits, made.labels, meta=meta(), signals={"certainty": certainty}
    )
    point = calibrate(knowing, policy="learned", max_cost=0.6)
    guessing = calibrate(knowing, policy="confidence", max_cost=0.6)
    assert point.accuracy > guessing.accuracy + 5  # it knows who is right
    assert point.policy["thresholds"] != [0.5] * EXITS
    assert all(abs(score) <= 1 for row in point.probes.scores for score in row)


def test_records_without_the_signal_are_refused() -> None:
    made = records()
    silent = Records.from_logits(made.logits, made.labels, meta=meta())
    with pytest.raises(OfframpError, match="needs the signal 'certainty'"):
        calibrate(silent, policy="learned", max_drop=1)
