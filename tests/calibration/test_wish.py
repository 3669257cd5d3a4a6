"""Wishes: points remember how they were asked for, and say it in options of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_records import made_records

from offramp.calibration import OperatingPoint, Wish, calibrate
from offramp.costs.table import CostTable
from offramp.reducers import ReducerSpec


def milliseconds(batch_size: int) -> CostTable:
    body, head = (1.0,) * 4, (0.25, 0.25, 0.25, 0.0)
    return CostTable(unit="ms", body=body, head=head, full=4.0, meta={"batch_size": batch_size})


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        ({"max_drop": 1.5}, "--max-drop 1.5"),
        ({"max_drop": 100 / 3}, "--max-drop 33.333333333333336"),
        (
            {"policy": "entropy", "max_cost": 0.5, "temperatures": True, "search": "dynamic"},
            "--policy entropy --max-cost 0.5 --temperatures --search dynamic",
        ),
        (
            {"risk": 0.2, "delta": 0.2, "risk_kind": "gap", "method": "ucb", "path": "shared"},
            "--risk 0.2 --delta 0.2 --risk-kind gap --method ucb --path shared",
        ),
        (
            {"max_drop": 1, "certainty": 0.9, "smooth": False},
            "--max-drop 1 --certainty 0.9 --no-smooth",
        ),
        (
            {"policy": "boosted", "policy_options": {"keep": 0.25}, "max_drop": 5},
            "--policy boosted --max-drop 5 --policy-option keep=0.25",
        ),
        (
            {"policy": "ztw_geometric", "policy_options": {"include_last": True}, "max_drop": 5},
            "--policy ztw_geometric --max-drop 5 --policy-option include_last=true",
        ),
        ({"max_drop": 1, "costs": milliseconds(8)}, "--max-drop 1 --cost time --batch-size 8"),
        (
            {"max_latency_ms": 4, "quantile": "p50", "time": milliseconds(1)},
            "--max-latency-ms 4 --quantile p50",
        ),
    ],
)
def test_points_say_how_they_were_asked_for(asked: dict[str, Any], flags: str) -> None:
    assert calibrate(made_records(600), **asked).asked.flags == flags


def test_every_wish_has_its_own_name() -> None:
    given: list[dict[str, Any]] = [
        {},
        {"certainty": 0.9},
        {"temperatures": True},
        {"search": "dynamic"},
        {"smooth": False},
        {"policy_options": {"keep": 0.25}},
    ]
    slugs = [Wish(max_drop=1, **more).slug for more in given]
    assert slugs[0] == "max-drop-1"
    assert slugs[1:4] == [
        "max-drop-1-certainty-0.9",
        "max-drop-1-temperatures",
        "max-drop-1-dynamic",
    ]
    assert len(set(slugs)) == len(slugs)


def test_where_records_come_from_is_part_of_it() -> None:
    records = made_records(300, engine="openvino", precision="int8", split="validation")
    flags = calibrate(records, max_drop=1).asked.flags
    assert flags == "--max-drop 1 --engine openvino --precision int8 --split validation"


def test_strengths_of_a_reducer() -> None:
    spec = ReducerSpec(name="evo_vit", options={"keep": 0.5, "classifier": "class"})
    one = Wish(max_drop=1, reducers=(spec,))
    assert one.flags == (
        """--max-drop 1 --reducer '{"name": "evo_vit", "keep": 0.5, "classifier": "class"}'"""
    )
    some = Wish(max_drop=1, reducers=(spec.at(keep=1.0), spec, spec.at(keep=0.25)))
    assert some.flags == (
        """--max-drop 1 --reducer '{"name": "evo_vit", "classifier": "class"}' --keep 1,0.5,0.25"""
    )
    assert Wish.model_validate_json(some.model_dump_json()) == some


@pytest.mark.parametrize(
    "asked",
    [
        {"policy": "entropy", "max_drop": 1.5, "temperatures": True},
        {"risk": 0.2, "delta": 0.2, "risk_kind": "gap", "method": "ucb"},
        {"max_latency_ms": 4.0, "quantile": "p50", "time": milliseconds(1)},
        {"max_cost": 0.7, "costs": milliseconds(8)},
    ],
)
def test_files_without_a_wish_tell_what_they_can(asked: dict[str, Any], tmp_path: Path) -> None:
    point = calibrate(made_records(600), **asked)
    point.save(tmp_path / "new.json")
    assert OperatingPoint.load(tmp_path / "new.json") == point
    values = json.loads((tmp_path / "new.json").read_text())
    del values["wish"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = OperatingPoint.load(tmp_path / "old.json")
    assert old.wish is None
    assert old.asked == point.asked
