"""Parts of calibration records: disjoint, complete, and a matter of ids alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_records

from offramp.calibration import Records, calibrate
from offramp.calibration.splits import cut, hash_order
from offramp.errors import OfframpError

SHARES = {"fit": 0.15, "thresholds": 0.3, "proof": 0.55}


@settings(max_examples=40, deadline=None)
@given(count=st.integers(3, 300), seed=st.integers(0, 1000))
def test_parts_share_no_sample_and_lose_none(count: int, seed: int) -> None:
    records = made_records(count, 2, 3, seed=seed)
    ids = [part.ids for part in cut(records, SHARES).values()]
    assert all(len(part) for part in ids)
    assert torch.equal(torch.cat(ids).sort().values, records.ids)
    for part, share in zip(ids, SHARES.values(), strict=True):
        assert abs(len(part) - share * count) <= 2


def test_parts_do_not_depend_on_the_order_of_the_records() -> None:
    records = made_records(500, 2, 3)
    turned = Records.from_logits(
        records.logits.flip(0), records.labels.flip(0), meta=records.meta, ids=records.ids.flip(0)
    )
    for name, part in cut(records, SHARES).items():
        assert set(part.ids.tolist()) == set(cut(turned, SHARES)[name].ids.tolist())


def test_the_hash_order_is_no_order_of_the_data() -> None:
    place = hash_order(made_records(2000, 2, 3)).double()
    assert abs(torch.corrcoef(torch.stack([place, torch.arange(2000.0).double()]))[0, 1]) < 0.08


def test_a_part_is_the_records_of_its_samples(tmp_path: Path) -> None:
    records = made_records(400, 3, 4)
    records.save(tmp_path / "records.safetensors")
    stored = Records.load(tmp_path / "records.safetensors")
    for whole in (records, stored):
        part = cut(whole, SHARES)["thresholds"]
        rows = torch.isin(records.ids, part.ids)
        assert torch.equal(part.confidence, records.confidence[rows])
        assert torch.equal(part.outputs(1, slice(3, 9)).logits, records.logits[rows][3:9, 1])
        again = cut(part, {"one": 0.5, "two": 0.5})["two"]
        assert torch.equal(again.logits, records.logits[torch.isin(records.ids, again.ids)])
        assert torch.equal(part.logits, records.logits[rows])


def test_too_few_samples() -> None:
    with pytest.raises(OfframpError, match=r"2 samples cannot be cut into 3 parts \(fit, thres"):
        cut(made_records(2, 2, 3), SHARES)
    assert cut(made_records(1, 2, 3), {"all": 1.0})["all"].ids.tolist() == [0]


def test_temperatures_are_fitted_apart_from_the_thresholds() -> None:
    records = made_records(1000, 4, 5)
    point = calibrate(records, max_drop=2.0, temperatures=True)
    assert point.samples == {"fit": 150, "thresholds": 850}
    assert point.n == 850
    assert calibrate(records, max_drop=2.0).samples == {"thresholds": 1000}
