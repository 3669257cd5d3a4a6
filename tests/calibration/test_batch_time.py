"""Time at a batch size: survivors run in batches of their own size, and calls have a fixed cost."""

import pytest

from offramp.calibration.batch_time import batch_time
from offramp.calibration.point import FrontPoint
from offramp.costs.table import CostTable


def point(share: tuple[float, ...], active: tuple[int, ...]) -> FrontPoint:
    return FrontPoint(
        policy={"name": "confidence"},
        active=active,
        accuracy=90.0,
        drop=0.0,
        drop_error=0.0,
        cost=1.0,
        cost_share=1.0,
        speedup_layers=1.0,
        exit_share=share,
    )


def tables(fixed: float, each: float) -> dict[int, CostTable]:
    """Calls of ``fixed + each · n`` ms for the body, half of that for a head, by batch size."""
    found = {}
    for size in (1, 4, 8):
        body = (fixed + each * size) / size
        found[size] = CostTable(
            unit="ms", body=(body,) * 3, head=(body / 2, body / 2, 0.0), full=3 * body
        )
    return found


def test_without_fixed_costs_it_is_the_mean_cost() -> None:
    chosen = point((0.5, 0.25, 0.25), (0, 1))
    by_size = tables(0.0, 1.0)
    expected = by_size[1].mean_cost(chosen.exit_share, chosen.active)
    assert batch_time(chosen, by_size, 8) == pytest.approx(expected)


def test_a_fixed_cost_weighs_more_on_few_survivors() -> None:
    chosen = point((0.75, 0.0, 0.25), (0,))
    by_size = tables(1.0, 1.0)
    # 8 images through body and head, then 2 through the bodies of both later exits
    expected = ((1 + 8) * 1.5 + 2 * (1 + 2)) / 8
    assert batch_time(chosen, by_size, 8) == pytest.approx(expected)
    assert batch_time(chosen, by_size, 8) > by_size[8].mean_cost((0.75, 0.0, 0.25), (0,))


def test_less_than_one_survivor_is_a_call_now_and_then() -> None:
    chosen = point((0.9, 0.0, 0.1), (0,))
    by_size = tables(1.0, 1.0)
    assert batch_time(chosen, by_size, 1) == pytest.approx(2 * 1.5 + 0.1 * 2 * 2)


def test_switching_off_an_exit_saves_its_head() -> None:
    by_size = tables(1.0, 1.0)
    with_head = batch_time(point((0.5, 0.0, 0.5), (0, 1)), by_size, 8)
    without = batch_time(point((0.5, 0.0, 0.5), (0,)), by_size, 8)
    assert with_head - without == pytest.approx((1 + 4) / 2 / 8)
