"""Latency tables: the right shape, positive times, nothing about accuracy of clocks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from offramp.costs.clock import timed
from offramp.costs.macs import count_macs, model_costs
from offramp.creation import create
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.reducers import ReducerSpec
from offramp.runtime.latency import latency_table


@pytest.fixture(scope="module")
def model() -> MultiExitModel:
    return create(
        "deit_tiny_patch16_224",
        exits=[{"after": 1, "head": "lph"}, {"after": 2, "head": "linear"}],
        num_classes=10,
        image_size=32,
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    )


def test_one_table_per_batch_size(model: MultiExitModel) -> None:
    model.train()
    tables = latency_table(model, torch.randn(3, 3, 32, 32), (1, 4), repeats=3, warmup=1)
    assert list(tables) == [1, 4]
    for size, table in tables.items():
        assert table.unit == "ms"
        assert table.num_exits == 3
        assert min(*table.body, table.full) > 0
        assert min(table.head) >= 0
        assert sum(table.body) == pytest.approx(table.full)
        assert table.meta["batch_size"] == size
        assert table.meta["hardware"]["threads"] == torch.get_num_threads()
    assert model.training


def test_what_a_reducer_saves_is_in_the_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts MACs: a table must show the reduced chain against the whole backbone."""
    model = create(
        "deit_tiny_patch16_224",
        exits="linear",
        at=[1],
        num_classes=10,
        image_size=32,
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
    )
    few = model.with_reducer(ReducerSpec(name="tome", options={"r": 4}))

    def counted(call: Callable[..., Any], *inputs: Any, device: Any) -> tuple[float, Any]:
        return float(count_macs(call, *inputs)), call(*inputs)

    monkeypatch.setattr("offramp.runtime.latency.timed", counted)
    table = latency_table(few, torch.randn(1, 3, 32, 32), (1,), repeats=1, warmup=0)[1]
    costs = model_costs(few)
    assert table.full == costs.full
    assert sum(table.body) == pytest.approx(sum(costs.body) + costs.head[-1])
    assert sum(table.body) < 0.8 * table.full


def test_bad_requests(model: MultiExitModel) -> None:
    with pytest.raises(OfframpError, match="at least one image"):
        latency_table(model, torch.zeros(0, 3, 32, 32))
    with pytest.raises(OfframpError, match="batch size 0"):
        latency_table(model, torch.zeros(1, 3, 32, 32), (0,))


def test_timed_returns_the_result() -> None:
    took, result = timed(max, 3, 5)
    assert result == 5
    assert 0 <= took < 1000
