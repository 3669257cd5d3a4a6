"""Records: scalars, laziness, files, and collecting from a model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from made_records import made_logits, made_meta, made_records
from torch import Tensor, nn

from offramp.calibration import Records, record
from offramp.calibration import records as records_module
from offramp.errors import OfframpError
from offramp.policies import Confidence, Entropy, Margin, Patience


class Gated(NamedTuple):
    logits: Tensor
    gate: Tensor


class FakeModel(nn.Module):
    """Three exits that read the image's mean; the early two have a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 4)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, images: Tensor) -> list[Any]:
        mean = self.norm(images.mean(dim=(1, 2, 3))[:, None])
        said = [Gated(self.head(mean) * k, mean[:, 0] + k) for k in (1, 2)]
        return [*said, SimpleNamespace(logits=self.head(mean) * 3, _fields=("logits",))]


def fake_batches(count: int, size: int) -> list[SimpleNamespace]:
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(count)
    return [
        SimpleNamespace(images=images[rows], labels=rows % 4, ids=rows + 100)
        for rows in ids.split(size)
    ]


def test_scalars_are_what_the_policies_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "CHUNK", 7)
    records = made_records(30)
    outputs = SimpleNamespace(logits=records.logits[:, 2])
    for policy in (Confidence.shared(0, 4), Entropy.shared(0, 4), Margin.shared(0, 4), Patience(1)):
        assert torch.equal(records.readings(policy)[:, 2], policy.read(2, outputs))
    assert torch.equal(records.entropy, -records.scalars["entropy"])
    assert torch.equal(records.correct, records.prediction == records.labels[:, None])
    assert records.accuracy[2] == pytest.approx(records.correct[:, 2].float().mean().item())


def test_load_reads_scalars_and_logits_only_when_asked(tmp_path: Path) -> None:
    records = made_records(50)
    path = tmp_path / "records.safetensors"
    records.save(path)
    loaded = Records.load(path)
    assert loaded._logits is None
    assert loaded.meta == records.meta
    assert loaded.digest == records.digest
    for name, values in records.scalars.items():
        assert torch.equal(loaded.scalars[name], values)
    hot = Confidence([0.5] * 4, temperatures=[2.0] * 4)
    assert torch.equal(loaded.readings(hot), records.readings(hot))
    assert loaded._logits is None  # read chunk by chunk
    assert torch.equal(loaded.logits, records.logits)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.safetensors"
    made_records(50).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OfframpError, match=r"records\.safetensors: not a complete"):
        Records.load(path)
    path.write_bytes(b"")
    with pytest.raises(OfframpError, match=r"records\.safetensors"):
        Records.load(path)
    with pytest.raises(OfframpError, match="no such file"):
        Records.load(tmp_path / "nothing.safetensors")
    records_module.write_tensors(path, {"weight": torch.ones(2)})
    with pytest.raises(OfframpError, match="holds no records"):
        Records.load(path)
    tensors = {name: torch.zeros(1) for name in ("labels", "ids", "prediction", "correct")}
    records_module.write_tensors(path, tensors, {"records": '{"fingerprint": 3}'})
    with pytest.raises(OfframpError, match="fingerprint"):
        Records.load(path)


def test_empty_misshapen_and_broken_records() -> None:
    logits, labels = made_logits(6, 3, 4)
    with pytest.raises(OfframpError, match="split 'calibration' is empty"):
        Records.from_logits(logits[:0], labels[:0], meta=made_meta(3))
    with pytest.raises(OfframpError, match="records of 3 exits"):
        Records.from_logits(logits, labels, meta=made_meta(4))
    with pytest.raises(OfframpError, match="6 labels"):
        Records.from_logits(logits, labels[:5], meta=made_meta(3))
    logits[4, 1, 0] = torch.nan
    with pytest.raises(OfframpError, match="block 2: the logits of sample 14 are not finite"):
        Records.from_logits(logits, labels, ids=torch.arange(10, 16), meta=made_meta(3))


def test_record_runs_each_batch_once_and_keeps_signals() -> None:
    model = FakeModel().train()
    records = record(model, fake_batches(10, 4), meta=made_meta(3), count=10, progress=True)
    assert model.training  # left as it was, but recorded in eval mode:
    assert torch.equal(model.norm.running_mean, torch.zeros(1))
    assert records.ids.tolist() == list(range(100, 110))
    assert records.logits.shape == (10, 3, 4)
    gate = records.signals["gate"]
    assert torch.allclose(gate[:, 1] - gate[:, 0], torch.ones(10))
    assert gate[:, 2].isnan().all()
    assert torch.equal(records.outputs(1, slice(2, 5)).gate, gate[2:5, 1])


def test_record_stops_at_the_count_and_misses_nothing() -> None:
    model = FakeModel()
    records = record(model, fake_batches(10, 4), meta=made_meta(3), count=6)
    assert len(records) == 6
    with pytest.raises(OfframpError, match="gave 10 of 12 samples"):
        record(model, fake_batches(10, 4), meta=made_meta(3), count=12)
    with pytest.raises(OfframpError, match="is empty"):
        record(model, [], meta=made_meta(3), count=0)


def test_signals_survive_the_file(tmp_path: Path) -> None:
    records = record(FakeModel(), fake_batches(5, 5), meta=made_meta(3), count=5)
    records.save(tmp_path / "records.safetensors")
    loaded = Records.load(tmp_path / "records.safetensors")
    assert torch.equal(loaded.signals["gate"][:, :2], records.signals["gate"][:, :2])
    assert set(loaded.scalars) == set(records.scalars)


def test_a_policy_that_needs_an_unrecorded_signal() -> None:
    class Gate(Patience):
        needs = ("mood",)

        def column(self) -> None:
            return None

    with pytest.raises(OfframpError, match="signal 'mood'"):
        made_records(10).readings(Gate(1))
