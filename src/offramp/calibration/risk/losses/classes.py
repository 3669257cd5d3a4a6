"""Losses of classes: another label than the full model's, or a wrong one."""

from torch import Tensor

from offramp.calibration.records import Records
from offramp.calibration.risk.losses.loss import LOSSES, AnswerLoss, percent


@LOSSES.register("consistency")
class Consistency(AnswerLoss):
    """Another label than the full model's; needs no labels of the data."""

    name = "consistency"

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        return (prediction != records.full_prediction[:, None]).float()

    def says(self, value: float) -> str:
        return f"at most {percent(value)} of samples get another label than the full model's"

    def show(self, value: float) -> str:
        return f"{percent(value)} got another label"


@LOSSES.register("gap")
class Gap(AnswerLoss):
    """Extra 0/1 loss: 1 where only the full model is right, −1 where only the answer is."""

    name = "gap"

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        labels = records.labels[:, None]
        full = (records.full_prediction[:, None] == labels).float()
        return full - (prediction == labels).float()

    def says(self, value: float) -> str:
        return f"at most {percent(value)} more of the samples are wrong than with the full model"

    def show(self, value: float) -> str:
        return f"{percent(value)} more were wrong"
