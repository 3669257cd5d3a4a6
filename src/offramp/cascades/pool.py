"""A pool of models: what each said about the same samples, and what asking it costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.calibration.records import Records
from offramp.errors import OfframpError

Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Pool:
    """M whole models and N samples; models stand from cheap to dear.

    Attributes:
        names: of the models.
        costs: (M,) of asking each about one image, in ``unit``.
        confidence, correct: (M, N) largest softmax probability of each, and whether it is right.
        labels: (N,).
        logits: (M, N, C), where answers are to be averaged.
    """

    names: tuple[str, ...]
    costs: Floats
    unit: str
    confidence: Scores
    correct: Bools
    labels: NDArray[np.int64]
    logits: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def accuracy(self) -> Floats:
        """(M,) share of right answers of each model alone."""
        return self.correct.mean(axis=1)

    @property
    def best(self) -> int:
        """The most accurate model alone; of equals the cheapest."""
        return int(np.argmax(self.accuracy))

    def stage(self, asked: Sequence[int], *, average: bool) -> tuple[Scores, Bools]:
        """Confidence and rightness (N,) of a cascade that has asked these models.

        Args:
            average: it answers with the mean of their logits, not as the last of them.
        """
        if not average or len(asked) == 1:
            return self.confidence[asked[-1]], self.correct[asked[-1]]
        if self.logits is None:
            raise OfframpError("averaging needs the models' logits, which these records lack")
        mean = torch.from_numpy(self.logits[list(asked)].sum(axis=0)) / len(asked)
        right = mean.argmax(-1).numpy() == self.labels
        return mean.softmax(-1).amax(-1).numpy(), right


def joined(
    records: Sequence[Records],
    names: Sequence[str],
    costs: Sequence[float],
    *,
    unit: str,
    logits: bool = False,
) -> Pool:
    """Records of several models, aligned by sample; of each the final exit counts.

    Args:
        records: of one split of one data set.
        costs: of asking each model about one image.
        logits: keep them, for averages.

    Raises:
        OfframpError: when the samples, labels, engines or precisions are not the same.
    """
    if len(records) < 2:
        raise OfframpError(f"a pool of {len(records)} models, but a cascade needs two at least")
    order = sorted(range(len(records)), key=lambda m: (costs[m], m))
    first = records[0]
    ids, rows = first.ids.sort()
    aligned = [rows]
    for name, other in zip(names[1:], records[1:], strict=True):
        _comparable(names[0], first, name, other)
        found, rows = other.ids.sort()
        if not torch.equal(found, ids):
            raise OfframpError(
                f"{name} was recorded on other samples of {other.meta.dataset} than {names[0]} "
                f"({len(found)} and {len(ids)}, {_common(found, ids)} in common): train both with "
                "the same data section"
            )
        if not torch.equal(other.labels[rows], first.labels[aligned[0]]):
            raise OfframpError(f"{name} was recorded with other labels than {names[0]}")
        aligned.append(rows)
    return Pool(
        names=tuple(names[m] for m in order),
        costs=np.asarray([costs[m] for m in order], dtype=np.float64),
        unit=unit,
        confidence=np.stack([records[m].confidence[aligned[m], -1].float().numpy() for m in order]),
        correct=np.stack([records[m].correct[aligned[m], -1].numpy() for m in order]),
        labels=first.labels[aligned[0]].numpy(),
        logits=(
            np.stack([records[m].logits[aligned[m], -1].float().numpy() for m in order])
            if logits
            else None
        ),
    )


def _comparable(name: str, first: Records, other_name: str, other: Records) -> None:
    for what in ("task", "dataset", "split", "engine", "precision"):
        had, has = getattr(first.meta, what), getattr(other.meta, what)
        if had != has:
            raise OfframpError(
                f"{other_name} was recorded with {what} {has!r}, but {name} with {had!r}"
            )
    if first.meta.task != "classification":
        raise OfframpError(f"cascades are searched by confidence, which {first.meta.task} has not")


def _common(one: torch.Tensor, other: torch.Tensor) -> int:
    return int(torch.isin(one, other).sum())
