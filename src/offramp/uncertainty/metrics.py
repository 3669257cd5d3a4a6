"""Is a probability to be taken at its word? Calibration, proper scores, and what they tell apart.

From torchmetrics where it has them: the calibration error of Naeini et al., AAAI 2015, AUROC and
AUPRC. Equal-mass bins: Nguyen and O'Connor, EMNLP 2015.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from offramp import vision_cure
from offramp.uncertainty.answers import Answers
from offramp.uncertainty.selective import selective

BINS = 15


class Scores(BaseModel):
    """Numbers about a set of answers; less is better but for ``accuracy``, ``auroc``, ``auprc``.

    Attributes:
        samples: N.
        accuracy: percent.
        nll: mean negative log-likelihood of the label, nats.
        brier: mean Σ_k (p_k - y_k)², 0 … 2.
        ece: expected calibration error, 15 bins of equal width.
        adaptive_ece: the same with bins of equal mass.
        auroc, auprc: how well 1 - max p tells wrong answers from right ones, wrong ones being the
            positives; None where all are right or all wrong.
        aurc: area under the selective risk (see `Selective`).
    """

    model_config = ConfigDict(extra="forbid")

    samples: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    auroc: float | None
    auprc: float | None
    aurc: float


def scores(answers: Answers) -> Scores:
    """All scores of some answers, over all samples at once."""
    p, labels = answers.probabilities, answers.labels
    told = tell_apart(-answers.confidence, ~answers.right)
    return Scores(
        samples=len(answers),
        accuracy=100 * answers.right.double().mean().item(),
        nll=F.cross_entropy(answers.logits, labels).item(),
        brier=brier(p, labels),
        ece=calibration_error(p, labels),
        adaptive_ece=adaptive_calibration_error(answers.confidence, answers.right),
        auroc=told[0] if told else None,
        auprc=told[1] if told else None,
        aurc=selective(answers.confidence, answers.right).aurc,
    )


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over samples of Σ_k (p_k - y_k)²: (N, C), (N,)."""
    p = probabilities.double()
    true = p.gather(1, labels[:, None])[:, 0]
    return (p.square().sum(dim=1) - 2 * true + 1).mean().item()


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Σ_b n_b/N |accuracy - confidence| over bins of equal width of the largest probability."""
    vision_cure.ensure()  # torchmetrics looks for torchvision
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(
        multiclass_calibration_error(
            probabilities, labels, num_classes=probabilities.shape[-1], n_bins=bins
        )
    )


def adaptive_calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The same over bins that hold equally many samples, by rank of confidence: (N,), (N,)."""
    order = confidence.argsort(stable=True)
    gap = (confidence[order].double() - right[order].double()).tensor_split(bins)
    return sum(abs(part.sum().item()) for part in gap) / len(order)


def tell_apart(score: Tensor, positive: Tensor) -> tuple[float, float] | None:
    """AUROC and AUPRC of a score (N,) for positives (N,) bool; None where there is one kind."""
    if bool(positive.all()) or not bool(positive.any()):
        return None
    vision_cure.ensure()
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    # Ranks: the library takes numbers outside 0 … 1 for logits, and its sigmoid would tie many.
    _, rank = score.double().unique(return_inverse=True)
    even = rank.float() / max(int(rank.max()), 1)
    target = positive.long()
    return float(binary_auroc(even, target)), float(binary_average_precision(even, target))


class Separation(BaseModel):
    """How well a score tells samples of another data set from its own: AUROC and AUPRC, the others
    being the positives."""

    model_config = ConfigDict(extra="forbid")

    auroc: float
    auprc: float


def separation(inside: Answers, outside: Answers) -> dict[str, Separation]:
    """By score: ``confidence`` (1 - max p), ``entropy``, ``energy`` (-log Σ exp z; Liu et al.,
    NeurIPS 2020)."""
    found = {}
    foreign = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))]).bool()
    for name, score in _FOREIGN.items():
        told = tell_apart(torch.cat([score(inside), score(outside)]), foreign)
        if told:
            found[name] = Separation(auroc=told[0], auprc=told[1])
    return found


_FOREIGN = {
    "confidence": lambda answers: -answers.confidence,
    "entropy": lambda answers: torch.special.entr(answers.probabilities).sum(dim=-1),
    "energy": lambda answers: -answers.logits.logsumexp(dim=-1),
}
