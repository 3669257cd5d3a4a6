"""Records: what every exit said about every sample of a set, stored once.

Raw logits are kept for proofs and later methods; the few scalars per sample and exit on which
searches run are computed once and read alone, so a search never touches the logits.
"""

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import torch
from pydantic import ValidationError
from torch import Tensor

from offramp.calibration.records_meta import RecordsMeta
from offramp.errors import OfframpError
from offramp.files import open_tensors, tensor_digest, write_tensors
from offramp.policies.base import POLICIES, Policy, ScalarPolicy
from offramp.policies.threshold import ThresholdPolicy
from offramp.tasks import TASKS, Task, task_named

CHUNK = 4096  # samples whose logits are in hand at once
_SIGNAL = "signal."


class FullAnswers(NamedTuple):
    """What another model's last exit says: predictions (N,), and that model's fingerprint."""

    prediction: Tensor
    fingerprint: str


class Records:
    """What K exits said about N samples.

    The full model, which losses are held against, is what the last exit says, unless these are
    records of the model with tokens left out: then `against` names another.

    Attributes:
        labels: (N,) int64; in regression float32, the targets.
        ids: (N,) int64, the samples' names in their data set.
        scalars: per name (N, K): ``prediction`` int64, ``correct`` bool, and the score of every
            threshold policy at temperature 1 (higher is surer); in regression ``prediction``
            float32 and the scores of policies that can judge numbers.
        signals: per name (N, K): what exits declare besides logits.
        meta: model, data and engine they were recorded with.
    """

    def __init__(
        self,
        *,
        labels: Tensor,
        ids: Tensor,
        scalars: dict[str, Tensor],
        signals: dict[str, Tensor],
        meta: RecordsMeta,
        logits: Tensor | None = None,
        path: Path | None = None,
        places: Tensor | None = None,
        full: FullAnswers | None = None,
    ) -> None:
        self.labels, self.ids, self.meta = labels, ids, meta
        self.scalars, self.signals = scalars, signals
        self._logits, self._path = logits, path
        self._places = places  # of the samples in the file, where it holds others too
        self._full = full

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        labels: Tensor,
        *,
        meta: RecordsMeta,
        ids: Tensor | None = None,
        signals: dict[str, Tensor] | None = None,
    ) -> Self:
        """Records of ``logits`` (N, K, C) float32 and ``labels`` (N,); scalars are computed here.

        Raises `OfframpError` when there are no samples, shapes disagree or logits are not finite.
        """
        count, exits, _ = logits.shape
        if count == 0:
            raise OfframpError(f"{meta.dataset}: split {meta.split!r} is empty, nothing to record")
        if exits != meta.num_exits or len(meta.positions) != exits - 1:
            raise OfframpError(
                f"records of {exits} exits, but {meta.num_exits} exit names and "
                f"{len(meta.positions)} positions of early exits"
            )
        ids = torch.arange(count) if ids is None else ids.long()
        if labels.shape != (count,) or ids.shape != (count,):
            raise OfframpError(f"records of {count} samples need {count} labels and ids")
        records = cls(
            labels=labels.to(TASKS.get(meta.task).targets),
            ids=ids,
            scalars={},
            signals=signals or {},
            meta=meta,
            logits=logits.float(),
        )
        parts = [records._scalars_of(rows) for rows in records._rows()]
        records.scalars = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return records

    def part(self, rows: Tensor) -> Self:
        """Records of some of the samples, by position (n,) ascending; logits are read when asked
        for."""
        return type(self)(
            labels=self.labels[rows],
            ids=self.ids[rows],
            scalars={name: values[rows] for name, values in self.scalars.items()},
            signals={name: values[rows] for name, values in self.signals.items()},
            meta=self.meta,
            logits=None if self._logits is None else self._logits[rows],
            path=self._path,
            places=rows if self._places is None else self._places[rows],
            full=self._full and self._full._replace(prediction=self._full.prediction[rows]),
        )

    def against(self, full: "Records") -> Self:
        """These records, with the last exit of others as the full model; it is not saved.

        Raises:
            OfframpError: for records of other samples.
        """
        if not torch.equal(self.ids, full.ids) or not torch.equal(self.labels, full.labels):
            raise OfframpError("the full model's records are of other samples")
        return self._held_against(FullAnswers(full.prediction[:, -1], full.meta.fingerprint))

    def under(self, family: type[Policy], fitted: Mapping[str, Any]) -> Self:
        """These records, with the full model that a policy's family has; see
        `Policy.full_prediction`."""
        said = None if self._full else family.full_prediction(self, **fitted)
        if said is None:
            return self
        return self._held_against(FullAnswers(said, self.meta.fingerprint))

    def _held_against(self, full: FullAnswers) -> Self:
        found = copy.copy(self)
        found._full = full
        for held in ("full_worth", "full_accuracy"):
            found.__dict__.pop(held, None)
        return found

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_exits(self) -> int:
        return self.meta.num_exits

    @cached_property
    def task(self) -> Task:
        """What kind of answers these are."""
        return task_named(self.meta.task)

    @property
    def prediction(self) -> Tensor:
        return self.scalars["prediction"]

    @cached_property
    def worth(self) -> Tensor:
        """What every answer is worth (N, K), more is better: being right (bool), or minus the
        absolute error."""
        if "correct" in self.scalars:
            return self.correct
        return self.task.worth(self.prediction, self.labels[:, None])

    @property
    def full_prediction(self) -> Tensor:
        """What the full model says: (N,)."""
        return self.prediction[:, -1] if self._full is None else self._full.prediction

    @cached_property
    def full_worth(self) -> Tensor:
        """What the full model's answers are worth: (N,)."""
        return self.worth[:, -1] if self._full is None else self.worth_of(self._full.prediction)

    @cached_property
    def full_accuracy(self) -> float:
        """Mean worth of the full model's answers."""
        return float(self.full_worth.double().mean())

    @property
    def full_model(self) -> str | None:
        """Fingerprint of the full model, where it is another than these records are of."""
        named = None if self._full is None else self._full.fingerprint
        return None if named == self.meta.fingerprint else named

    def worth_of(self, prediction: Tensor) -> Tensor:
        """What these predictions (N,) for the samples are worth: (N,)."""
        return self.task.worth(prediction, self.labels)

    @property
    def correct(self) -> Tensor:
        return self._scalar("correct")

    @property
    def confidence(self) -> Tensor:
        return self._scalar("confidence")

    @property
    def entropy(self) -> Tensor:
        """In nats; its negative is the score of the entropy policy."""
        return -self._scalar("entropy")

    @property
    def margin(self) -> Tensor:
        return self._scalar("margin")

    @property
    def accuracy(self) -> list[float]:
        """Mean worth of every exit over all samples (K,): accuracy as a share, or minus the MAE."""
        accuracy: list[float] = self.worth.double().mean(dim=0).tolist()
        return accuracy

    @property
    def figures(self) -> list[dict[str, float]]:
        """What is reported of every exit (K,): ``accuracy`` in percent, or ``mae`` and ``rmse``."""
        return [self.task.figures(column, self.labels) for column in self.prediction.unbind(dim=1)]

    @property
    def logits(self) -> Tensor:
        """(N, K, C), read from the file at first use."""
        if self._logits is None:
            self._logits = self._chunk(slice(0, len(self)))
        return self._logits

    @cached_property
    def digest(self) -> str:
        """Hash of labels, ids and scalars: two equal digests are the same records."""
        tensors = {"labels": self.labels, "ids": self.ids, **self.scalars}
        return tensor_digest(tensors, extra=self.meta.fingerprint)

    def outputs(self, k: int, rows: slice) -> SimpleNamespace:
        """What exit ``k`` said about some samples, as a policy sees it live."""
        signals = {name: values[rows, k] for name, values in self.signals.items()}
        return SimpleNamespace(logits=self._chunk(rows)[:, k], **signals)

    def said(self, rows: slice) -> list[SimpleNamespace]:
        """What every exit said about some samples, shallow to deep, read once."""
        logits = self._chunk(rows)
        return [
            SimpleNamespace(
                logits=logits[:, k],
                **{name: values[rows, k] for name, values in self.signals.items()},
            )
            for k in range(self.num_exits)
        ]

    def readings(self, policy: ScalarPolicy) -> Tensor:
        """What a scalar policy reads at every exit: (N, K), stored or computed from the logits."""
        name = policy.column()
        if name is not None and name in self.scalars:
            return self.scalars[name]
        missing = set(policy.needs) - set(self.signals)
        if missing:
            raise OfframpError(
                f"policy {policy.name!r} needs the signal {sorted(missing)[0]!r}, which these "
                "records do not hold; record again with exits that give it"
            )
        return torch.cat([self._read(policy, rows) for rows in self._rows()])

    def save(self, path: Path | str) -> None:
        """Write everything to one safetensors file."""
        tensors = {"logits": self.logits, "labels": self.labels, "ids": self.ids, **self.scalars}
        tensors |= {_SIGNAL + name: values for name, values in self.signals.items()}
        write_tensors(path, tensors, {"records": self.meta.model_dump_json()})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read scalars and labels now, logits when first asked for.

        Raises `OfframpError` naming the file when it is truncated or holds no records.
        """
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
            names = set(file.keys()) - {"logits"}
            required = {"labels", "ids", "prediction"}
            if "records" not in metadata or not required <= names:
                raise OfframpError(f"{path}: holds no records (made by `offramp.collect`)")
            tensors = {name: file.get_tensor(name) for name in names}
        try:
            meta = RecordsMeta.model_validate_json(metadata["records"])
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise OfframpError(f"{path}: records: {key}: {first['msg']}") from None
        labels, ids = tensors.pop("labels"), tensors.pop("ids")
        signals = {n.removeprefix(_SIGNAL): t for n, t in tensors.items() if n.startswith(_SIGNAL)}
        scalars = {name: t for name, t in tensors.items() if not name.startswith(_SIGNAL)}
        return cls(
            labels=labels, ids=ids, scalars=scalars, signals=signals, meta=meta, path=Path(path)
        )

    def _scalar(self, name: str) -> Tensor:
        if name not in self.scalars:
            raise OfframpError(f"records of a {self.meta.task} model hold no {name}")
        return self.scalars[name]

    def _file(self) -> Path:
        if self._path is None:
            raise OfframpError("these records hold no logits; collect them again")
        return self._path

    def _rows(self) -> Iterator[slice]:
        for start in range(0, len(self), CHUNK):
            yield slice(start, min(start + CHUNK, len(self)))

    def _chunk(self, rows: slice) -> Tensor:
        """Logits of some samples, without holding all of them when they are still on disk."""
        if self._logits is not None:
            return self._logits[rows]
        with open_tensors(self._file()) as file:
            stored = file.get_slice("logits")
            if self._places is None:
                chunk: Tensor = stored[rows]
                return chunk
            places = self._places[rows]
            low, high = int(places.min()), int(places.max()) + 1
            return torch.as_tensor(stored[low:high][places - low])

    def _read(self, policy: ScalarPolicy, rows: slice) -> Tensor:
        columns = [policy.read(k, said) for k, said in enumerate(self.said(rows))]
        return torch.stack(columns, dim=1)

    def _scalars_of(self, rows: slice) -> dict[str, Tensor]:
        logits = self._chunk(rows)
        if not bool(torch.isfinite(logits).all()):
            n, k = (~torch.isfinite(logits)).any(dim=-1).nonzero()[0].tolist()
            raise OfframpError(
                f"{self.meta.exit_names[k]}: the logits of sample {self.ids[rows][n].item()} are "
                "not finite; the model or its input is broken"
            )
        prediction = self.task.predict(logits)
        scalars = {"prediction": prediction}
        if self.task.targets == torch.int64:  # the worth of a class is one bit, worth keeping
            scalars["correct"] = self.task.worth(prediction, self.labels[rows, None])
        for name in POLICIES.names():
            entry = POLICIES.get(name)
            judges = self.meta.task in entry.tasks and not set(entry.needs) - set(self.signals)
            if issubclass(entry, ThresholdPolicy) and judges:
                scalars[name] = self._read(entry.shared(entry.never, self.num_exits), rows)
        return scalars
