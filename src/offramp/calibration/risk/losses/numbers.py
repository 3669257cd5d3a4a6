"""Losses of numbers: how far an answer is from the full model's."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from offramp.calibration.records import Records
from offramp.calibration.risk.losses.loss import LOSSES, AnswerLoss, percent


@LOSSES.register("deviation")
class Deviation(AnswerLoss):
    """A number further from the full model's than the tolerance; needs no labels of the data."""

    name, tasks = "deviation", ("regression",)
    options: ClassVar[Mapping[str, str]] = {
        "tolerance": "how far from the full model's number an answer may be without counting"
    }

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        return (_distance(prediction, records) > self.given["tolerance"]).float()

    def says(self, value: float) -> str:
        return (
            f"at most {percent(value)} of samples get a number more than "
            f"{self.given['tolerance']:g} away from the full model's"
        )

    def show(self, value: float) -> str:
        return f"{percent(value)} got a number further away"


@LOSSES.register("mean_deviation")
class MeanDeviation(AnswerLoss):
    """Distance from the full model's number, counted up to a cap: min(|y_k − y_K|, cap).

    The risk, and with it ε, is in the unit of the data. No cap, no proof: a mean of distances that
    may be anything cannot be bounded from samples. Needs no labels of the data.
    """

    name, tasks, binary = "mean_deviation", ("regression",), False
    options: ClassVar[Mapping[str, str]] = {
        "cap": "distances from the full model's number count as it where they are larger"
    }

    def __init__(self, **given: float) -> None:
        super().__init__(**given)
        self.bound = self.given["cap"]

    def compare(self, prediction: Tensor, records: Records) -> Tensor:
        return _distance(prediction, records).clamp(max=self.bound)

    def says(self, value: float) -> str:
        return (
            f"the mean distance from the full model's number is at most {value:g}, distances "
            f"above {self.bound:g} counted as {self.bound:g}"
        )

    def show(self, value: float) -> str:
        return f"{value:.4g} away on average"


def _distance(prediction: Tensor, records: Records) -> Tensor:
    """|y_k − y_K| of predictions (N, …)."""
    return (prediction - records.full_prediction[:, None]).abs()
