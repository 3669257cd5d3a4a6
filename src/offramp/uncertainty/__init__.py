"""Uncertainty: how far to trust what left, as scores, selective risk and prediction sets."""

from offramp.uncertainty.answers import Answers, exit_answers, mixture_answers
from offramp.uncertainty.conformal import Conformal, conformal
from offramp.uncertainty.coverage import Coverage, coverage
from offramp.uncertainty.evaluation import Uncertainty, uncertainty_run
from offramp.uncertainty.metrics import Scores, Separation, scores, separation
from offramp.uncertainty.selective import Selective, selective

__all__ = [
    "Answers",
    "Conformal",
    "Coverage",
    "Scores",
    "Selective",
    "Separation",
    "Uncertainty",
    "conformal",
    "coverage",
    "exit_answers",
    "mixture_answers",
    "scores",
    "selective",
    "separation",
    "uncertainty_run",
]
