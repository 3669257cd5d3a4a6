"""Everything about uncertainty that a run's records tell: exit by exit, and for its points."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.calibration.collection import record, records_meta
from offramp.calibration.records import Records
from offramp.data import batches, open_dataset
from offramp.errors import OfframpError
from offramp.files import read_json, write_json
from offramp.uncertainty.answers import Answers, exit_answers, mixture_answers
from offramp.uncertainty.conformal import By, calibrate_sets, conformal
from offramp.uncertainty.conformal_scores import METHODS, Method
from offramp.uncertainty.coverage import Coverage, coverage
from offramp.uncertainty.metrics import Scores, Separation, scores, separation
from offramp.uncertainty.selective import Selective, selective

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.runs import RunFolder

UNCERTAINTY = "uncertainty.json"
ALPHAS = (0.1, 0.05)


class Sets(BaseModel):
    """Prediction sets of one kind on held-out samples."""

    model_config = ConfigDict(extra="forbid")

    alpha: float
    method: Method
    by: By
    found: Coverage


class Subject(BaseModel):
    """One way to answer: an exit for everybody, or an operating point.

    Attributes:
        leavers: of a point, scores of those who left at each exit; None where fewer than two did.
        outside: by score, how well another data set's samples are told from these.
    """

    model_config = ConfigDict(extra="forbid")

    scores: Scores
    selective: Selective
    leavers: list[Scores | None] = []
    sets: list[Sets]
    outside: dict[str, Separation] = {}


class Uncertainty(BaseModel):
    """Uncertainty of a run on a split.

    Attributes:
        sets_from: split that prediction sets were calibrated on.
        outside: the other data set, where one was looked at.
        exits: every exit for everybody, shallow to deep.
        points: operating points by name.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    dataset: str
    split: str
    samples: int
    sets_from: str
    sets_samples: int
    outside: str | None = None
    exit_names: list[str]
    exits: list[Subject]
    points: dict[str, Subject]


def uncertainty_run(
    run: "RunFolder",
    *,
    split: str = "test",
    sets_from: str = "validation",
    outside: str | None = None,
    alphas: Sequence[float] = ALPHAS,
    progress: bool = True,
) -> Uncertainty:
    """Scores and prediction sets of a run, kept as ``uncertainty.json``.

    Args:
        sets_from: split to calibrate prediction sets on. The validation split has chosen no
            threshold, which the calibration split has.
        outside: a data set whose test split is foreign to the model.
        alphas: shares of the sets that may miss the right class.
    """
    if sets_from == split:
        raise OfframpError(
            f"prediction sets calibrated on the {split} split would prove nothing there: use "
            "another split for them"
        )

    from offramp.reduced_run import point_records, reduced_run

    def of(part: str, point: "OperatingPoint | None" = None) -> Records:
        if point is None:
            return run.records(part, progress=progress)
        return point_records(run, point, part, progress=progress)

    held_out, fit = of(split), of(sets_from)

    def abroad(subject: "RunFolder") -> Records | None:
        if outside is None:
            return None
        return outside_records(subject, outside, len(held_out), progress)

    foreign = abroad(run)
    exits = [
        _subject(
            exit_answers(held_out, k),
            _alone(exit_answers(fit, k), exit_answers(held_out, k), alphas),
            None if foreign is None else exit_answers(foreign, k),
        )
        for k in range(held_out.num_exits)
    ]
    points = {
        name: _point(
            point,
            of(split, point),
            of(sets_from, point),
            abroad(reduced_run(run, point.reducer)) if point.reducer else foreign,
            alphas,
        )
        for name, point in run.points().items()
    }
    found = Uncertainty(
        **{key: getattr(held_out.meta, key) for key in ("fingerprint", "dataset", "split")},
        samples=len(held_out),
        sets_from=sets_from,
        sets_samples=len(fit),
        outside=outside,
        exit_names=held_out.meta.exit_names,
        exits=exits,
        points=points,
    )
    write_json(run.path / UNCERTAINTY, found.model_dump(mode="json"))
    return found


def read_uncertainty(path: Path, fingerprint: str) -> Uncertainty | None:
    """What ``offramp eval --uncertainty`` wrote about a model; None: nothing, or of other weights.

    Raises:
        OfframpError: when the file is not what it writes.
    """
    if not path.is_file():
        return None
    try:
        found = Uncertainty.model_validate(read_json(path))
    except ValidationError:
        raise OfframpError(
            f"{path}: no result of offramp eval --uncertainty; run it again"
        ) from None
    return found if found.fingerprint == fingerprint else None


def outside_records(run: "RunFolder", name: str, limit: int, progress: bool) -> Records:
    """Records of a data set that the model knows nothing about; its labels mean nothing here."""
    source, model = open_dataset(name), run.model
    if source.task != "classification" or source.name == run.data.name:
        raise OfframpError(f"{name}: the foreign images must be of another image data set")
    samples = source.split("test").limited(limit)
    stream = batches(samples, batch_size=64, preprocessing=model.preprocessing)
    meta = records_meta(model, dataset=source.name, split="test")
    return record(model, stream, meta=meta, count=len(samples), progress=progress)


def _subject(answers: Answers, sets: list[Sets], foreign: Answers | None) -> Subject:
    return Subject(
        scores=scores(answers),
        selective=selective(answers.confidence, answers.right),
        sets=sets,
        outside={} if foreign is None else separation(answers, foreign),
    )


def _alone(fit: Answers, held_out: Answers, alphas: Sequence[float]) -> list[Sets]:
    """Sets of one exit for everybody."""
    return [
        Sets(
            alpha=alpha,
            method=method,
            by="mixture",
            found=coverage(calibrate_sets(fit, alpha=alpha, method=method), held_out),
        )
        for alpha in alphas
        for method in _methods()
    ]


def _point(
    point: "OperatingPoint",
    held_out: Records,
    fit: Records,
    foreign: Records | None,
    alphas: Sequence[float],
) -> Subject:
    policy = point.policy_object()
    answers = mixture_answers(policy, held_out, point.active)
    ways: tuple[By, ...] = ("mixture", "exit")
    sets = [
        Sets(
            alpha=alpha,
            method=method,
            by=by,
            found=coverage(conformal(point, fit, alpha=alpha, method=method, by=by), answers),
        )
        for alpha in alphas
        for method in _methods()
        for by in ways
    ]
    other = None if foreign is None else mixture_answers(policy, foreign, point.active)
    subject = _subject(answers, sets, other)
    for k in range(answers.num_exits):
        left = answers.part(answers.exit == k)
        subject.leavers.append(scores(left) if len(left) > 1 else None)
    return subject


def _methods() -> list[Method]:
    return list(METHODS)
