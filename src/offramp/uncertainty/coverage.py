"""Do prediction sets hold the right class as often as promised, and how large are they?"""

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from offramp.uncertainty.answers import Answers
from offramp.uncertainty.conformal import Conformal


class Coverage(BaseModel):
    """Prediction sets on held-out samples.

    Attributes:
        coverage: share that holds the right class.
        size: mean number of classes.
        empty: share of sets without any.
        exit_share, exit_coverage, exit_size: (K,) among those who left at each exit; None where
            nobody did.
    """

    model_config = ConfigDict(extra="forbid")

    coverage: float
    size: float
    empty: float
    exit_share: list[float]
    exit_coverage: list[float | None]
    exit_size: list[float | None]


def coverage(sets: Conformal, answers: Answers) -> Coverage:
    """What the sets do on answers they were not calibrated on."""
    held = sets.sets(answers.probabilities, answers.exit, answers.ids)
    right = held.gather(1, answers.labels[:, None])[:, 0].double()
    size = held.sum(dim=1).double()
    members = [answers.exit == k for k in range(answers.num_exits)]
    return Coverage(
        coverage=right.mean().item(),
        size=size.mean().item(),
        empty=(size == 0).double().mean().item(),
        exit_share=[member.double().mean().item() for member in members],
        exit_coverage=[_mean(right[member]) for member in members],
        exit_size=[_mean(size[member]) for member in members],
    )


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
