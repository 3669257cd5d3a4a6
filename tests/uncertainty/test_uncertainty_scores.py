"""Scores against their definitions and other libraries; selective risk; telling foreign samples."""

import numpy as np
import pytest
import torch
from made_uncertainty import made_answers, uniform_answers
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from offramp.uncertainty import Answers, scores, selective, separation
from offramp.uncertainty.metrics import adaptive_calibration_error, brier, calibration_error


def test_scores_equal_other_implementations() -> None:
    answers = made_answers()
    found, p = scores(answers), answers.probabilities.double().numpy()
    labels = answers.labels.numpy()
    p /= p.sum(axis=1, keepdims=True)
    names = list(range(p.shape[1]))
    assert found.samples == len(answers)
    assert found.accuracy == pytest.approx(100 * (p.argmax(1) == labels).mean())
    assert found.nll == pytest.approx(log_loss(labels, p, labels=names), rel=1e-5)
    assert found.brier == pytest.approx(_brier(p, labels), rel=1e-5)
    wrong = p.argmax(1) != labels
    assert found.auroc == pytest.approx(roc_auc_score(wrong, -p.max(1)), abs=1e-5)
    assert found.auprc == pytest.approx(average_precision_score(wrong, -p.max(1)), abs=1e-5)


def _brier(p: np.ndarray, labels: np.ndarray) -> float:
    return float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(axis=1).mean())


def test_the_brier_score_of_certain_answers() -> None:
    p = torch.eye(3)[[0, 1, 2, 0]]
    assert brier(p, torch.tensor([0, 1, 2, 0])) == 0
    assert brier(p, torch.tensor([1, 2, 0, 1])) == 2
    assert brier(torch.full((4, 4), 0.25), torch.arange(4)) == pytest.approx(0.75)


def test_calibrated_answers_have_a_small_error_and_sharpened_ones_a_large_one() -> None:
    answers = uniform_answers(20_000)
    for measure in (
        lambda a: calibration_error(a.probabilities, a.labels),
        lambda a: adaptive_calibration_error(a.confidence, a.right),
    ):
        honest = measure(answers)
        boastful = Answers(3 * answers.logits, *_rest(answers))
        assert honest < 0.015
        assert measure(boastful) > 0.1


def _rest(answers: Answers) -> tuple:
    return answers.exit, answers.labels, answers.ids, answers.num_exits


def test_calibration_errors_by_hand() -> None:
    confidence = torch.tensor([0.6, 0.6, 0.9, 0.9])
    p = torch.stack([confidence, 1 - confidence], dim=1)
    labels = torch.tensor([0, 1, 0, 0])
    assert calibration_error(p, labels) == pytest.approx(0.1)  # 0.6 is right half of the time
    assert adaptive_calibration_error(confidence, labels == 0, bins=2) == pytest.approx(0.1)
    assert adaptive_calibration_error(confidence, labels == 0, bins=1) == pytest.approx(0.0)


def test_answers_all_right_tell_nothing_apart() -> None:
    answers = made_answers()
    known = answers.part(answers.right)
    found = scores(known)
    assert found.auroc is None
    assert found.auprc is None
    assert (found.accuracy, found.aurc) == (100, 0)


def test_selective_risk_by_hand() -> None:
    right = torch.tensor([True, False, True, False])
    found = selective(torch.tensor([0.9, 0.8, 0.7, 0.6]), right)
    assert found.coverage == [0.25, 0.5, 0.75, 1.0]
    assert found.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert found.aurc == pytest.approx(1 / 3)
    assert found.excess == pytest.approx(1 / 3 - (0 + 0 + 1 / 3 + 1 / 2) / 4)
    perfect = selective(right.float(), right)
    assert perfect.excess == pytest.approx(0)


def test_equally_sure_answers_have_no_order() -> None:
    right = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.7
    sure = torch.full((50,), 0.8)
    found = selective(sure, right)
    assert found.risk == pytest.approx([1 - right.double().mean().item()] * 50)
    order = torch.randperm(50)
    assert selective(sure, right[order]).aurc == pytest.approx(found.aurc)


def test_foreign_samples_are_told_by_their_doubt() -> None:
    inside, outside = made_answers(seed=0), made_answers(seed=1)
    vague = Answers(0.05 * outside.logits, *_rest(outside))
    found = separation(inside, vague)
    assert set(found) == {"confidence", "entropy", "energy"}
    assert all(value.auroc > 0.95 for value in found.values())
    same = separation(inside, outside)
    assert all(abs(value.auroc - 0.5) < 0.05 for value in same.values())
