"""Accuracy against budget: steps, spreads and pointless exits, from records and costs."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.anytime import (
    BUDGETS,
    Anytime,
    Budgets,
    accuracy_at,
    anytime,
    dominated_by,
    single_costs,
)
from offramp.calibration import Records, RecordsMeta
from offramp.costs.table import CostTable
from offramp.errors import OfframpError

FIXED, UNIFORM, BURSTY = BUDGETS
ACCURACY, COSTS, PRIOR = [50.0, 70.0, 80.0], [1.0, 2.0, 4.0], 10.0
TABLE = CostTable(unit="MACs", body=(1.0, 2.0, 4.0), head=(0.5, 0.25, 0.125), full=7.125)


def records(*, task: str = "classification", standalone: bool = True) -> Records:
    """Three exits, each right more often than the one before; in regression nearer the truth."""
    draw = torch.Generator().manual_seed(0)
    meta = RecordsMeta(
        fingerprint="f",
        dataset="made",
        split="test",
        exit_names=["block 1", "block 2", "final"],
        positions=[1, 2],
        blocks=3,
        standalone=[True, standalone, True],
        task=task,
    )
    noise = torch.tensor([2.0, 1.0, 0.3])[:, None]
    if task == "regression":
        labels = torch.randn(200, generator=draw)
        errors = noise * torch.randn(200, 3, 1, generator=draw)
        return Records.from_logits(labels[:, None, None] + errors, labels, meta=meta)
    labels = torch.randint(4, (200,), generator=draw).clamp(max=2)  # 2 is the commonest
    logits = noise * torch.randn(200, 3, 3, generator=draw)
    logits[torch.arange(200)[:, None], torch.arange(3), labels[:, None]] += 1.5
    return Records.from_logits(logits, labels, meta=meta)


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [(0, 10), (0.99, 10), (1, 50), (1.99, 50), (2, 70), (3.99, 70), (4, 80), (99, 80)],
)
def test_a_fixed_budget_is_a_step_function(budget: float, wanted: float) -> None:
    assert accuracy_at(ACCURACY, COSTS, PRIOR, FIXED, budget) == pytest.approx(wanted)


def test_costs_that_fall_count_the_last_exit_that_fits() -> None:
    """Alone, a later exit with a lighter head may cost less than an earlier one."""
    found = [accuracy_at(ACCURACY, [1.0, 5.0, 4.0], PRIOR, FIXED, b) for b in (1, 3.9, 4, 4.5, 5)]
    assert found == pytest.approx([50, 50, 80, 80, 80])


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(BUDGETS),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 5)), min_size=1, max_size=6),
    st.floats(0.1, 10),
)
def test_spreads_are_what_drawing_budgets_gives(
    budgets: Budgets, exits: list[tuple[float, float]], mean: float
) -> None:
    accuracy, costs = zip(*exits, strict=True)
    random, total, n = np.random.default_rng(0), 0.0, 20_000
    for weight, low, high in budgets.pieces:
        drawn = random.uniform(low * mean, high * mean, n)
        fits = np.asarray(costs)[None] <= drawn[:, None]
        last = np.where(fits.any(1), len(costs) - 1 - fits[:, ::-1].argmax(1), -1)
        values = np.where(last < 0, PRIOR, np.asarray(accuracy)[last])
        total += weight * float(values.mean())
    found = accuracy_at(accuracy, costs, PRIOR, budgets, mean)
    assert found == pytest.approx(total, abs=2.5)


@pytest.mark.parametrize("budgets", BUDGETS, ids=lambda b: b.name)
def test_spreads_have_the_mean_they_are_named_by(budgets: Budgets) -> None:
    pieces = budgets.pieces
    assert sum(weight for weight, *_ in pieces) == pytest.approx(1)
    assert sum(weight * (low + high) / 2 for weight, low, high in pieces) == pytest.approx(1)


def test_the_average_is_the_area_of_the_steps() -> None:
    said = records()
    curve = anytime(said, TABLE).curves["multi"]
    exits = [100 * accuracy for accuracy in said.accuracy]
    assert curve.costs == [1.5, 3.75, 7.875]
    area = (3.75 - 1.5) * exits[0] + (7.875 - 3.75) * exits[1]
    assert curve.average == pytest.approx(area / (7.875 - 1.5))


def test_answers_counted_one_by_one() -> None:
    said = records()
    found = anytime(said, TABLE)
    for budget in (1.0, 1.5, 4.0, 8.0):
        fitting = [k for k, cost in enumerate(found.curves["multi"].costs) if cost <= budget]
        guess = int(said.labels.mode().values)
        right = said.correct[:, fitting[-1]] if fitting else said.labels == guess
        value = accuracy_at(found.exits, found.curves["multi"].costs, found.prior, FIXED, budget)
        assert value == pytest.approx(100 * right.double().mean().item())


def test_costs_are_counted_both_ways() -> None:
    assert single_costs(TABLE, [True, True, True]) == [1.5, 3.25, 7.125]
    assert single_costs(TABLE, [True, False, True]) == [1.5, 3.75, 7.875]
    assert list(TABLE.leave_cost()) == [1.5, 3.75, 7.875]
    assert anytime(records(standalone=False), TABLE).curves["single"].costs == [1.5, 3.75, 7.875]


def test_an_exit_is_pointless_where_another_costs_no_more_and_is_better() -> None:
    assert dominated_by([50, 70, 80], [1, 2, 4]) == [None, None, None]
    # a ViT head after block l costs what the backbone to l + 1 costs
    assert dominated_by([50, 55, 80], [2, 2, 4]) == [1, None, None]
    assert dominated_by([50, 49, 80], [1, 2, 4]) == [None, 0, None]
    assert dominated_by([50, 60, 60], [1, 3, 2]) == [None, 2, None]
    assert dominated_by([50, 50], [1, 1]) == [None, None]


def test_numbers_instead_of_classes() -> None:
    said = records(task="regression")
    found = anytime(said, TABLE)
    assert found.task == "regression"
    assert found.exits[0] > found.exits[1] > found.exits[2] > 0
    assert found.curves["multi"].dominated_by == [None, None, None]
    middle = (said.labels - said.labels.median()).abs().mean().item()
    assert found.prior == pytest.approx(middle)


def test_it_survives_json() -> None:
    found = anytime(records(), TABLE)
    assert Anytime.model_validate(json.loads(found.model_dump_json())) == found
    assert len(found.budgets) == len(found.curves["multi"].accuracy["bursty"])


def test_a_table_of_other_exits_is_refused() -> None:
    other = CostTable(unit="MACs", body=(1.0,), head=(1.0,), full=2.0)
    with pytest.raises(OfframpError, match="cost table has 1 exits, the records 3"):
        anytime(records(), other)
