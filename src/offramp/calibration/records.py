"""Records: what every exit said about every sample of a set, stored once.

Raw logits are kept for proofs and later methods; the few scalars per sample and exit on which
searches run are computed once and read alone, so a search never touches the logits.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.files import open_tensors, tensor_digest, write_tensors
from offramp.policies.base import POLICIES, ScalarPolicy
from offramp.policies.threshold import ThresholdPolicy

CHUNK = 4096  # samples whose logits are in hand at once
_SIGNAL = "signal."


class RecordsMeta(BaseModel):
    """Where records come from."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    dataset: str
    split: str
    exit_names: list[str]
    positions: list[int]
    blocks: int
    standalone: list[bool]
    engine: str = "torch"
    precision: str = "float32"
    versions: dict[str, str] = {}
    num_threads: int | None = None
    costs: CostTable | None = None

    @property
    def num_exits(self) -> int:
        return len(self.exit_names)

    @property
    def blocks_run(self) -> list[int]:
        """Blocks run by a sample that leaves at exit k: (K,)."""
        return [*self.positions, self.blocks]


class Records:
    """What K exits said about N samples.

    Attributes:
        labels: (N,) int64.
        ids: (N,) int64, the samples' names in their data set.
        scalars: per name (N, K): ``prediction`` int64, ``correct`` bool, and the score of every
            threshold policy at temperature 1 (higher is surer).
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
    ) -> None:
        self.labels, self.ids, self.meta = labels, ids, meta
        self.scalars, self.signals = scalars, signals
        self._logits, self._path = logits, path

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
            labels=labels.long(),
            ids=ids,
            scalars={},
            signals=signals or {},
            meta=meta,
            logits=logits.float(),
        )
        parts = [records._scalars_of(rows) for rows in records._rows()]
        records.scalars = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return records

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_exits(self) -> int:
        return self.meta.num_exits

    @property
    def prediction(self) -> Tensor:
        return self.scalars["prediction"]

    @property
    def correct(self) -> Tensor:
        return self.scalars["correct"]

    @property
    def confidence(self) -> Tensor:
        return self.scalars["confidence"]

    @property
    def entropy(self) -> Tensor:
        """In nats; its negative is the score of the entropy policy."""
        return -self.scalars["entropy"]

    @property
    def margin(self) -> Tensor:
        return self.scalars["margin"]

    @property
    def accuracy(self) -> list[float]:
        """Accuracy of every exit over all samples: (K,)."""
        accuracy: list[float] = self.correct.double().mean(dim=0).tolist()
        return accuracy

    @property
    def logits(self) -> Tensor:
        """(N, K, C), read from the file at first use."""
        if self._logits is None:
            with open_tensors(self._file()) as file:
                self._logits = file.get_tensor("logits")
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
            required = {"labels", "ids", "prediction", "correct"}
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
            chunk: Tensor = file.get_slice("logits")[rows]
        return chunk

    def _read(self, policy: ScalarPolicy, rows: slice) -> Tensor:
        logits = self._chunk(rows)
        columns: list[Tensor] = []
        for k in range(self.num_exits):
            signals: dict[str, Any] = {n: values[rows, k] for n, values in self.signals.items()}
            columns.append(policy.read(k, SimpleNamespace(logits=logits[:, k], **signals)))
        return torch.stack(columns, dim=1)

    def _scalars_of(self, rows: slice) -> dict[str, Tensor]:
        logits = self._chunk(rows)
        if not bool(torch.isfinite(logits).all()):
            n, k = (~torch.isfinite(logits)).any(dim=-1).nonzero()[0].tolist()
            raise OfframpError(
                f"{self.meta.exit_names[k]}: the logits of sample {self.ids[rows][n].item()} are "
                "not finite; the model or its input is broken"
            )
        prediction = logits.argmax(dim=-1)
        scalars = {"prediction": prediction, "correct": prediction == self.labels[rows, None]}
        for name in POLICIES.names():
            entry = POLICIES.get(name)
            if issubclass(entry, ThresholdPolicy) and not set(entry.needs) - set(self.signals):
                scalars[name] = self._read(entry.shared(entry.never, self.num_exits), rows)
        return scalars
