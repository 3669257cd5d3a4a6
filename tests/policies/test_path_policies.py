"""Policies that sum up the path: best of, voting, boosted."""

from types import SimpleNamespace

import pytest
import torch
from policy_family import CLASSES, EXITS, records
from torch import Tensor

from offramp.calibration import replay
from offramp.errors import OfframpError
from offramp.policies import BestOf, Boosted, Confidence, PathPolicy, Voting


def follow(policy: PathPolicy, *said: list[float]) -> list[tuple[Tensor, Tensor]]:
    """Score and answer after each exit, for one sample."""
    memory, found = policy.start(1), []
    for k, logits in enumerate(said):
        outputs = SimpleNamespace(logits=torch.tensor([logits]))
        score, answer, memory = policy.follow(k, outputs, memory)
        found.append((score[0], answer[0]))
    return found


def test_best_of_falls_back_on_the_surest_exit() -> None:
    exits = replay(BestOf.shared(1.0, EXITS, num_classes=CLASSES), records())
    assert exits.exit_share[-1] == 1.0
    surest = records().confidence.argmax(dim=1)
    expected = records().prediction.gather(1, surest[:, None])[:, 0]
    assert torch.equal(exits.prediction, expected)
    assert not torch.equal(expected, records().prediction[:, -1])


def test_best_of_chooses_among_active_exits_only() -> None:
    policy = BestOf.shared(1.0, EXITS, num_classes=CLASSES)
    on = [1, 3, EXITS - 1]
    found = replay(policy, records(), active=(1, 3)).prediction
    surest = records().confidence[:, on].argmax(dim=1)
    assert torch.equal(found, records().prediction[:, on].gather(1, surest[:, None])[:, 0])


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_best_of_leaves_where_confidence_leaves(threshold: float) -> None:
    best = replay(BestOf.shared(threshold, EXITS, num_classes=CLASSES), records())
    plain = replay(Confidence.shared(threshold, EXITS), records())
    assert torch.equal(best.exit, plain.exit)
    early = best.exit < EXITS - 1
    assert torch.equal(best.prediction[early], plain.prediction[early])


def test_equally_sure_exits_the_first_speaks() -> None:
    policy = BestOf.shared(1.0, 3, num_classes=2)
    memory = policy.start(1)
    for k, logits in enumerate(([60.0, 0.0], [0.0, 90.0])):  # both 1 in float32
        _, _, memory = policy.follow(k, SimpleNamespace(logits=torch.tensor([logits])), memory)
    last = SimpleNamespace(logits=torch.tensor([[0.0, 1.0]]))
    assert policy.final_answer(2, last, memory).tolist() == [[60.0, 0.0]]


def test_votes_are_counted_as_a_share_of_all_exits() -> None:
    a, b, c = [3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.0]
    found = follow(Voting.shared(1.0, 5, num_classes=3), a, b, a, c, b)
    assert [round(score.item(), 6) for score, _ in found] == [0.2, 0.2, 0.4, 0.4, 0.4]
    assert [int(answer.argmax()) for _, answer in found[:1] + found[2:4]] == [0, 0, 0]
    for _, answer in found:
        assert answer.exp().sum().item() == pytest.approx(1)


def test_equal_votes_are_decided_by_belief() -> None:
    weak, strong = [0.1, 0.0], [0.0, 5.0]
    assert follow(Voting.shared(1.0, 3, num_classes=2), weak, strong)[1][1].argmax() == 1
    assert follow(Voting.shared(1.0, 3, num_classes=2), strong, weak)[1][1].argmax() == 1
    # … but no belief beats a vote more
    many = follow(Voting.shared(1.0, 4, num_classes=2), weak, strong, weak)
    assert many[2][1].argmax() == 0


def test_above_one_half_nobody_can_overtake() -> None:
    sooner, later = (Voting.shared(t, EXITS, num_classes=CLASSES) for t in (0.5, 0.7))
    sooner_says, later_says = replay(sooner, records()), replay(later, records())
    both = later_says.exit < EXITS - 1
    assert both.any()
    assert (sooner_says.exit[both] < later_says.exit[both]).all()
    assert torch.equal(sooner_says.prediction[both], later_says.prediction[both])


def test_without_a_majority_the_last_exit_answers() -> None:
    decisions = replay(Voting.shared(0.5, EXITS, num_classes=CLASSES), records())
    stayed = decisions.exit == EXITS - 1
    assert stayed.any()
    assert torch.equal(decisions.prediction[stayed], records().prediction[stayed, -1])


def test_boostnet_of_the_card() -> None:
    found = follow(Boosted.shared(1.0, 3, num_classes=2), [1.0, 0.0], [0.5, 0.25], [0.0, 1.0])
    assert found[1][1].tolist() == [1.0, 0.25]
    assert found[2][1].tolist() == [0.5, 1.125]
    assert found[1][0].item() == pytest.approx(torch.tensor([1.0, 0.25]).softmax(-1)[0].item())


def test_boosted_without_the_past_is_confidence() -> None:
    alone = Boosted([0.7] * EXITS, CLASSES, keep=0.0)
    plain = Confidence.shared(0.7, EXITS)
    for active in (None, (0, 2)):
        one, other = replay(alone, records(), active), replay(plain, records(), active)
        assert torch.equal(one.exit, other.exit)
        assert torch.equal(one.prediction, other.prediction)


@pytest.mark.parametrize("keep", [0.5, 2.0])
def test_the_full_model_of_boosted_is_its_last_sum(keep: float) -> None:
    patient = Boosted([1.0] * EXITS, CLASSES, keep=keep)  # nobody leaves early
    whole = records().under(Boosted, patient.parameters())
    assert torch.equal(whole.full_prediction, replay(patient, records()).prediction)
    assert not torch.equal(whole.full_prediction, records().full_prediction)
    assert whole.full_model is None  # of no other model
    rows = torch.arange(3, len(whole))
    assert torch.equal(whole.part(rows).full_prediction, whole.full_prediction[rows])
    assert records().under(Confidence, {}).full_prediction.equal(records().full_prediction)


def test_other_classes_are_refused() -> None:
    with pytest.raises(OfframpError, match="made for 7 classes, but the exits know 4"):
        replay(BestOf.shared(0.5, EXITS, num_classes=7), records())
