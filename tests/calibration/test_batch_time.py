"""Time at a batch size: survivors run in batches of their own size, and calls have a fixed cost."""

import pytest

from offramp.calibration.batch_time import batch_time, quickest, survivors_table
from offramp.calibration.front import FrontPoint
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


def test_pieces_cost_what_they_take_in_the_batches_that_reach_them() -> None:
    by_size = tables(1.0, 1.0)
    table = survivors_table(point((0.5, 0.25, 0.25), (0, 1)), by_size, 8)
    # 8, 4 and 2 images arrive: (1 + n) / n ms for each in a body, half of that in a head
    assert table.body == pytest.approx((9 / 8, 5 / 4, 3 / 2))
    assert table.head == pytest.approx((9 / 16, 5 / 8, 0.0))
    assert table.full == by_size[8].full
    assert table.unit == "ms"


def test_the_search_goes_on_from_the_quickest_as_long_as_that_helps() -> None:
    by_size = tables(1.0, 1.0)
    slow, quick, quicker = (
        point((0.5, 0.0, 0.5), (0, 1)),
        point((0.5, 0.0, 0.5), (0,)),
        point((0.8, 0.0, 0.2), (0,)),
    )
    asked: list[CostTable] = []
    answers = iter([quicker, quick])

    def search(table: CostTable) -> FrontPoint:
        asked.append(table)
        return next(answers)

    assert quickest([slow, quick], by_size, search) is quicker
    assert asked == [survivors_table(found, by_size, 8) for found in (quick, quicker)]
