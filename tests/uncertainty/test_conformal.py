"""Prediction sets: the card's quantiles, coverage that is kept, and sets from a runner."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_uncertainty import EXITS, POLICY, made_answers, records, uniform_answers
from torch import Tensor

import offramp
from offramp.calibration import calibrate, replay
from offramp.data import open_dataset
from offramp.errors import OfframpError
from offramp.policies import POLICIES, Confidence
from offramp.uncertainty import Answers, Conformal, conformal, coverage, exit_answers
from offramp.uncertainty.answers import mixture_answers
from offramp.uncertainty.conformal import calibrate_sets, quantile
from offramp.uncertainty.conformal_scores import aps, lac, raps
from tiny import tiny_model

ONE = torch.ones(1)
WAYS: list[dict[str, Any]] = [
    {"method": "lac"},
    {"method": "aps"},
    {"method": "raps"},
    {"method": "aps", "randomized": True},
    {"method": "raps", "randomized": True, "free": 2, "penalty": 0.1},
]


# Answers


@pytest.mark.parametrize("name", ["confidence", "patience", "voting", "ztw_geometric", "jei_dnn"])
def test_answers_leave_where_replay_says(name: str) -> None:
    family, made = POLICIES.get(name), records()
    members = family.candidates(EXITS, **family.fit(made))
    for policy in (members[0], members[len(members) // 2], members[-1]):
        for active in (None, (1,)):
            decisions, answers = replay(policy, made, active), mixture_answers(policy, made, active)
            assert torch.equal(answers.exit, decisions.exit)
            assert torch.equal(answers.logits.argmax(-1), decisions.prediction)
            torch.testing.assert_close(answers.probabilities.sum(1), torch.ones(len(made)))


def test_answers_have_the_temperature_of_their_exit_once() -> None:
    made, scales = records(), [0.5, 1.0, 2.0, 4.0]
    answers = mixture_answers(Confidence([0.6] * EXITS, scales), made)
    rows = torch.arange(len(made))
    raw = made.logits[rows, answers.exit] / torch.tensor(scales)[answers.exit][:, None]
    torch.testing.assert_close(answers.probabilities, raw.softmax(-1))
    alone = exit_answers(made, 2, scales).probabilities
    torch.testing.assert_close(alone, (made.logits[:, 2] / 2).softmax(-1))


# Scores


P = torch.tensor([[0.2, 0.5, 0.3]])


def test_scores_by_hand() -> None:
    assert lac(P, ONE, penalty=9, free=0)[0].tolist() == pytest.approx([0.8, 0.5, 0.7])
    assert aps(P, ONE, penalty=9, free=0)[0].tolist() == pytest.approx([1.0, 0.5, 0.8])
    assert aps(P, 0 * ONE, penalty=9, free=0)[0].tolist() == pytest.approx([0.8, 0.0, 0.5])
    found = raps(P, ONE, penalty=0.1, free=1)[0].tolist()
    assert found == pytest.approx([1.2, 0.5, 0.9])


# Quantiles


def test_the_cards_quantiles() -> None:
    scores = torch.arange(1, 20) / 20
    assert quantile(scores[torch.randperm(19)], 0.1) == pytest.approx(0.9)
    hundred = torch.arange(1, 101).float()
    assert quantile(hundred, 0.05) == 96
    assert quantile(hundred, 0.0) is None
    assert quantile(hundred[:8], 0.1) is None  # nine tenths of eight cannot be told
    assert quantile(hundred[:9], 0.1) == 9


def test_alpha_zero_leaves_nothing_out() -> None:
    sets = calibrate_sets(made_answers(), alpha=0.0)
    found = coverage(sets, made_answers(seed=1))
    assert (found.coverage, found.size) == (1.0, 6.0)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_coverage_is_as_promised(way: dict[str, Any], alpha: float) -> None:
    whole, by_exit = [], []
    for seed in range(30):
        everyone = uniform_answers(1600, seed)
        fit, rest = everyone.part(torch.arange(800)), everyone.part(torch.arange(800, 1600))
        whole.append(coverage(calibrate_sets(fit, alpha=alpha, **way), rest).coverage)
        sets = calibrate_sets(fit, alpha=alpha, by="exit", **way)
        assert sets.groups == (0, 1, 2, 3)
        by_exit.append(coverage(sets, rest).exit_coverage)
    assert np.mean(whole) == pytest.approx(1 - alpha, abs=0.006)
    assert np.mean(by_exit, axis=0) == pytest.approx(1 - alpha, abs=0.012)


def test_only_sets_by_exit_keep_the_promise_at_every_exit() -> None:
    fit, rest = made_answers(6000), made_answers(6000, seed=1)
    misses = {}
    for by in ("mixture", "exit"):
        found = coverage(calibrate_sets(fit, alpha=0.1, by=by), rest)
        assert found.coverage == pytest.approx(0.9, abs=0.015)
        pairs = zip(found.exit_coverage, found.exit_share, strict=True)
        misses[by] = max(abs(held - 0.9) for held, share in pairs if share > 0.05)
    assert misses["exit"] < 0.03 < misses["mixture"]


def test_exits_with_few_leavers_share_a_group() -> None:
    answers = uniform_answers(400)
    rare = Answers(
        answers.logits,
        torch.where(answers.ids < 5, 1, torch.where(answers.ids < 200, 2, 3)),
        answers.labels,
        answers.ids,
        4,
    )
    sets = calibrate_sets(rare, alpha=0.1, by="exit")
    assert sets.groups == (0, 0, 0, 1)
    assert sets.samples == (200, 200)
    alone = calibrate_sets(rare, alpha=0.001, by="exit")
    assert set(alone.groups) == {0}


def test_the_released_ways_need_everybody() -> None:
    made = records()
    answers = mixture_answers(POLICY, made)
    with pytest.raises(OfframpError, match="what every exit says"):
        calibrate_sets(answers, alpha=0.1, by="released")

    def everyone(k: int) -> Answers:
        return exit_answers(made, k)

    everybody = calibrate_sets(answers, alpha=0.1, by="exit_all", everyone=everyone)
    assert everybody.samples == (2000,) * 4
    expected = calibrate_sets(exit_answers(made, 1), alpha=0.1).quantiles[0]
    assert everybody.quantiles[1] == expected
    few = answers.part(torch.arange(40))
    released = calibrate_sets(few, alpha=0.1, by="released", everyone=everyone)
    counts = few.exit.bincount(minlength=4).tolist()
    assert released.samples == tuple(n if n > 20 else 2000 for n in counts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"alpha = 1\.0"),
        ({"alpha": 0.1, "method": "apps"}, "method = 'apps'"),
        ({"alpha": 0.1, "by": "exits"}, "by = 'exits'"),
    ],
)
def test_bad_wishes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OfframpError, match=message):
        calibrate_sets(made_answers(100), **options)


def test_lac_sets_are_mapies() -> None:
    mapie = pytest.importorskip("mapie.classification")
    fit, rest = uniform_answers(99), uniform_answers(200, seed=1)

    class Known:
        """A classifier whose inputs are probabilities."""

        classes_ = np.arange(10)
        n_features_in_ = 10

        def fit(self, x: Any, y: Any) -> "Known":
            return self

        def predict(self, x: Any) -> Any:
            return np.asarray(x).argmax(1)

        def predict_proba(self, x: Any) -> Any:
            return np.asarray(x)

        def __sklearn_is_fitted__(self) -> bool:
            return True

    def inputs(answers: Answers) -> Any:
        p = answers.probabilities.double().numpy()
        return p / p.sum(axis=1, keepdims=True)

    other = mapie.SplitConformalClassifier(
        Known(), confidence_level=0.9, conformity_score="lac", prefit=True
    )
    other.conformalize(inputs(fit), fit.labels.numpy())
    _, expected = other.predict_set(inputs(rest))
    sets = calibrate_sets(fit, alpha=0.1).sets(rest.probabilities, rest.exit)
    assert np.array_equal(sets.numpy(), expected[:, :, 0])


# Points and runners


def test_sets_of_a_point_want_other_samples() -> None:
    made = records(split="calibration")
    point = calibrate(made, max_cost=0.7)
    with pytest.raises(OfframpError, match="chosen on these very records"):
        conformal(point, made)
    sets = conformal(point, records(seed=1, split="validation"), by="exit")
    answers = mixture_answers(point.policy_object(), records(6000, seed=2), point.active)
    assert coverage(sets, answers).coverage == pytest.approx(0.9, abs=0.03)


def test_a_runner_returns_sets(tmp_path: Path) -> None:
    model = tiny_model("linear", image_size=8, patch_size=2, embed_dim=32, num_heads=2)
    data = open_dataset("digits", limit=120)
    chosen, fit = (offramp.collect(model, data, split=s, progress=False) for s in ("train", "test"))
    point = calibrate(chosen, max_cost=1.1)
    runner = offramp.compile(model, point)
    images: Tensor = torch.randn(7, 3, 8, 8)
    with pytest.raises(OfframpError, match="no prediction sets"):
        _ = runner(images).sets
    sets = conformal(point, fit, alpha=0.2, method="aps", by="exit")
    sets.save(tmp_path / "sets.json")
    runner.conformal = Conformal.load(tmp_path / "sets.json")
    answer = runner(images)
    assert answer.sets.shape == (7, 10)
    assert answer.sets.dtype == torch.bool
    assert torch.equal(answer.sets, sets.sets(answer.probs, answer.exit))
    assert torch.equal(next(runner.stream([images])).sets, answer.sets)
    other = offramp.compile(model, policy=Confidence.shared(0.3, 4))
    with pytest.raises(OfframpError, match="another policy or other exits"):
        other.conformal = sets
    with pytest.raises(OfframpError, match="need the samples' ids"):
        runner.conformal = conformal(point, fit, method="aps", randomized=True)
