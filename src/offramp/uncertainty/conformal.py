"""Conformal prediction: sets of classes that hold the right one as often as promised.

Split conformal prediction (Vovk et al., 2005): on n samples that are exchangeable with later ones,
the ⌈(n+1)(1-α)⌉-th smallest score of the true classes bounds the score of a later true class with
probability at least 1-α. Which exit a sample leaves at depends on the sample alone, so the same
holds among those who leave at an exit, with the scores of those (Mondrian).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from offramp.calibration.records import Records
from offramp.data.randomness import sample_keys, uniforms
from offramp.errors import OfframpError
from offramp.files import read_model, write_json
from offramp.policies.base import policy_from_config
from offramp.uncertainty.answers import Answers, exit_answers, mixture_answers
from offramp.uncertainty.conformal_scores import METHODS, Method

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.policies.base import Policy

By = Literal["mixture", "exit", "exit_all", "released"]
ENOUGH = 20
"""Samples that the released code wants of an exit."""


class Conformal(BaseModel):
    """Prediction sets for what leaves a model under one policy, calibrated.

    Attributes:
        alpha: share of the sets that may miss the right class.
        method: ``lac``, ``aps`` or ``raps`` (see `offramp.uncertainty.conformal_scores`).
        by: whose scores bound a set. ``mixture``: those of all samples; the promise is about all.
            ``exit``: of the samples that left at the same exit, neighbours joined where those are
            few; the promise is about each. ``exit_all``: of all samples, as that exit judges them;
            and ``released`` (JEI-DNN), of the leavers where there are more than 20, else of all:
            both without a promise.
        randomized: scores of APS and RAPS draw a number per sample id; smaller sets, as exact.
        penalty, free: of RAPS: cost of each class beyond the first ``free``.
        groups: (K,) group of each exit.
        quantiles: of each group; None: no set leaves anything out.
        samples: calibration samples of each group.
        policy, active: whose answers they were; None: one exit's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(ge=0, lt=1)
    method: Method
    by: By
    randomized: bool = False
    penalty: float = Field(default=0.01, ge=0)
    free: int = Field(default=5, ge=0)
    groups: tuple[int, ...]
    quantiles: tuple[float | None, ...]
    samples: tuple[int, ...]
    policy: dict[str, Any] | None = None
    active: tuple[int, ...] | None = None
    fingerprint: str | None = None
    engine: str = "torch"
    precision: str = "float32"

    def sets(self, probabilities: Tensor, exits: Tensor, ids: Tensor | None = None) -> Tensor:
        """Which classes each set holds: (B, C) bool; a set may be empty.

        Args:
            probabilities: (B, C) of the answers that left.
            exits: (B,) where.
            ids: (B,) sample ids, where sets are randomized.
        """
        bounds = torch.tensor(
            [torch.inf if q is None else q for q in self.quantiles], device=exits.device
        )
        mine = bounds[torch.tensor(self.groups, device=exits.device)[exits]]
        return self.scores(probabilities, ids) <= mine[:, None]

    def scores(self, probabilities: Tensor, ids: Tensor | None = None) -> Tensor:
        """How little each class conforms: (B, C)."""
        draws = torch.ones(len(probabilities), device=probabilities.device)
        if self.randomized:
            if ids is None:
                raise OfframpError("randomized prediction sets need the samples' ids")
            keys = sample_keys(ids.cpu().numpy(), stream="conformal")
            draws = torch.from_numpy(uniforms(keys, 1)[:, 0]).to(probabilities)
        return METHODS[self.method](
            probabilities.float(), draws.float(), penalty=self.penalty, free=self.free
        )

    def check(self, policy: "Policy | None", active: Sequence[int], engine: str, at: str) -> None:
        """Raise `OfframpError` unless these are the answers it was calibrated on."""
        mine = None if self.policy is None else policy_from_config(self.policy)
        if (mine, tuple(self.active or ())) != (policy, tuple(active)):
            raise OfframpError(
                "these prediction sets were calibrated for another policy or other exits: "
                "calibrate them for this operating point"
            )
        if (self.engine, self.precision) != (engine, at):
            raise OfframpError(
                f"these prediction sets were calibrated on {self.engine} at {self.precision}, not "
                f"on {engine} at {at}: calibrate them on records of that"
            )

    def save(self, path: Path | str) -> None:
        """Write as JSON."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read saved sets, or raise `OfframpError` naming file and key."""
        return read_model(cls, path, "prediction sets")


def conformal(
    point: "OperatingPoint", records: Records, *, alpha: float = 0.1, **options: Any
) -> Conformal:
    """Calibrate prediction sets for what leaves at an operating point.

    Args:
        records: of samples that chose nothing: neither weights nor thresholds.
        alpha: share of the sets that may miss the right class.
        options: ``method``, ``by``, ``randomized``, ``penalty``, ``free`` of `Conformal`.

    Raises:
        OfframpError: for records of another model or engine, or those the point was chosen on.
    """
    meta, policy = records.meta, point.policy_object()
    point.check(meta.fingerprint, meta.engine, meta.precision)
    if records.digest == point.records:
        raise OfframpError(
            f"the point was chosen on these very records (split {meta.split!r}): calibrate its "
            "prediction sets on others"
        )
    scale = getattr(policy, "temperatures", None)
    made = calibrate_sets(
        mixture_answers(policy, records, point.active),
        alpha=alpha,
        everyone=lambda k: exit_answers(records, k, scale),
        **options,
    )
    about = {"policy": point.policy, "active": point.active, "fingerprint": meta.fingerprint}
    return made.model_copy(update={**about, "engine": meta.engine, "precision": meta.precision})


def calibrate_sets(
    answers: Answers,
    *,
    alpha: float,
    method: Method = "lac",
    by: By = "mixture",
    everyone: Callable[[int], Answers] | None = None,
    **options: Any,
) -> Conformal:
    """Quantiles of the true classes' scores in some answers.

    Args:
        everyone: what an exit says about all samples, for ``exit_all`` and ``released``.
        options: ``randomized``, ``penalty``, ``free``.
    """
    if not 0 <= alpha < 1:
        raise OfframpError(f"alpha = {alpha}, but it must be at least 0 and below 1")
    for name, value, known in (("method", method, Method), ("by", by, By)):
        if value not in get_args(known):
            raise OfframpError(f"{name} = {value!r} (use {', '.join(get_args(known))})")
    bare = Conformal(
        alpha=alpha, method=method, by=by, groups=(), quantiles=(), samples=(), **options
    )
    own = _true_scores(bare, answers)
    if by in ("mixture", "exit"):
        whole = (0,) * answers.num_exits
        groups = whole if by == "mixture" else _joined(answers, max(ENOUGH, _least(alpha)))
        member = torch.tensor(groups)[answers.exit]
        found = [own[member == group] for group in range(max(groups) + 1)]
    else:
        if everyone is None:
            raise OfframpError(f"by = {by!r} needs what every exit says about all samples")
        groups = tuple(range(answers.num_exits))
        leavers = [own[answers.exit == k] for k in groups]
        strict = by == "released"
        found = [
            part if strict and len(part) > ENOUGH else _true_scores(bare, everyone(k))
            for k, part in enumerate(leavers)
        ]
    return bare.model_copy(
        update={
            "groups": groups,
            "quantiles": tuple(quantile(part, alpha) for part in found),
            "samples": tuple(len(part) for part in found),
        }
    )


def quantile(scores: Tensor, alpha: float) -> float | None:
    """The ⌈(n+1)(1-α)⌉-th smallest of n scores; None where that is beyond the last."""
    place = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return None if place > len(scores) else scores.sort().values[max(place, 1) - 1].item()


def _true_scores(sets: Conformal, answers: Answers) -> Tensor:
    """Scores of the right classes (N,)."""
    found = sets.scores(answers.probabilities, answers.ids)
    return found.gather(1, answers.labels[:, None])[:, 0]


def _least(alpha: float) -> int:
    """Samples below which a quantile is beyond the last."""
    return math.ceil(1 / alpha) - 1 if alpha else 0


def _joined(answers: Answers, enough: int) -> tuple[int, ...]:
    """A group per exit, neighbours joined until every group has enough samples: (K,)."""
    counts = answers.exit.bincount(minlength=answers.num_exits).numpy()
    groups, group, held = [], 0, 0
    for k, count in enumerate(counts):
        groups.append(group)
        held += int(count)
        if held >= enough and np.sum(counts[k + 1 :]) >= enough:
            group, held = group + 1, 0
    return tuple(groups)
