"""Collect: a real model over a real split, once."""

import pytest
import torch

from offramp.calibration import Records, calibrate, evaluate
from offramp.costs.macs import model_costs
from offramp.data import batches, open_dataset
from offramp.model import MultiExitModel
from offramp.recording import collect


@pytest.fixture
def records(model: MultiExitModel) -> Records:
    return collect(model, "digits", batch_size=16, limit=40, progress=False)


def test_records_hold_what_the_model_says(model: MultiExitModel, records: Records) -> None:
    split = open_dataset("digits").split("calibration").limited(40)
    assert records.ids.tolist() == split.ids.tolist()
    assert records.labels.tolist() == split.labels.tolist()
    batch = next(batches(split, batch_size=40, preprocessing=model.preprocessing))
    with torch.no_grad():
        said = model(batch.images)
    for k, out in enumerate(said):
        assert torch.allclose(records.logits[:, k], out.logits, atol=1e-5)


def test_meta_says_where_they_come_from(model: MultiExitModel, records: Records) -> None:
    meta = records.meta
    assert (meta.dataset, meta.split) == ("digits", "calibration")
    assert meta.fingerprint == model.fingerprint()
    assert meta.exit_names == model.exit_names
    assert meta.blocks_run == list(model.blocks)
    assert meta.costs == model_costs(model)
    assert "torch" in meta.versions


def test_from_collecting_to_a_verdict(model: MultiExitModel, records: Records) -> None:
    point = calibrate(records, max_drop=5.0)
    point.check(model.fingerprint())
    held_out = collect(model, open_dataset("digits"), split="test", limit=30, progress=False)
    assert evaluate(point, held_out).n == 30
