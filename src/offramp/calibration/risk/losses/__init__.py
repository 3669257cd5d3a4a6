"""What leaving early can cost a sample: losses of an answer against the label or the full model."""

from offramp.calibration.risk.losses.classes import Consistency, Gap
from offramp.calibration.risk.losses.loss import LOSSES, AnswerLoss, Loss, loss_named
from offramp.calibration.risk.losses.numbers import Deviation, MeanDeviation
from offramp.calibration.risk.losses.probabilities import BrierConsistency, BrierGap, Hellinger

__all__ = [
    "LOSSES",
    "AnswerLoss",
    "BrierConsistency",
    "BrierGap",
    "Consistency",
    "Deviation",
    "Gap",
    "Hellinger",
    "Loss",
    "MeanDeviation",
    "loss_named",
]
