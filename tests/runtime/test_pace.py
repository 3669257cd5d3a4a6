"""Pace: expected times follow a machine that has become slower, or quicker."""

from collections.abc import Sequence
from typing import Any

import pytest
from test_deadline import Toy, made_times, toy_images
from torch import Tensor

from offramp.runtime.batching import BatchTimes
from offramp.runtime.pace import ENOUGH, RECENT, START, Pace


def test_too_few_segments_change_nothing() -> None:
    pace = Pace()
    for _ in range(ENOUGH - 1):
        pace.note(3.0, 1.0)
    pace.settle()
    assert pace.factor == START
    pace.note(3.0, 1.0)
    assert pace.factor == START  # not before the next request
    pace.settle()
    assert pace.factor == 3


def test_nearly_the_slowest_decides_and_old_times_are_forgotten() -> None:
    pace = Pace()
    for number in range(RECENT):
        pace.note(float(number), 10.0)
    pace.settle()
    assert pace.factor == 6.2  # of 0 … 6.3: the slowest of 64 is no rule
    for _ in range(RECENT):
        pace.note(0.5, 1.0)
    pace.settle()
    assert pace.factor == 0.5


@pytest.mark.parametrize(("slower", "exit_index"), [(1.0, 3), (2.0, 1), (0.5, 3)])
def test_a_measured_table_follows_the_machine(
    slower: float, exit_index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget of 4.5 is enough for four segments of 1 ms, or for two of 2 ms."""
    toy = Toy([slower] * 4)

    def measure(images: Tensor, sizes: Sequence[int], **options: Any) -> BatchTimes:
        return made_times([1, 1, 1, 1])

    monkeypatch.setattr(toy.runner, "measure", measure)
    for _ in range(ENOUGH):
        toy.runner(toy_images([3]), deadline_ms=50)
    toy.clock.ms = 0
    assert toy.runner(toy_images([3]), deadline_ms=4.5).exit.tolist() == [exit_index]
    assert toy.clock.ms <= 4.5


def test_a_given_table_is_taken_at_its_word() -> None:
    toy = Toy([2.0] * 4)
    toy.runner.times = made_times([1, 1, 1, 1])
    for _ in range(ENOUGH):
        toy.runner(toy_images([3]), deadline_ms=50)
    toy.clock.ms = 0
    assert toy.runner(toy_images([3]), deadline_ms=4.5).exit.tolist() == [1]
    assert toy.started[-1][0] == 2.0  # begun where one of 1 ms would have fitted
    toy.clock.ms = 0
    assert toy.runner(toy_images([3]), deadline_ms=5.5).exit.tolist() == [2]
    assert toy.clock.ms == 6.0  # late


def test_a_machine_that_recovers_is_noticed_even_where_nothing_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = Toy([100.0] * 4)

    def measure(images: Tensor, sizes: Sequence[int], **options: Any) -> BatchTimes:
        return made_times([1, 1, 1, 1])

    monkeypatch.setattr(toy.runner, "measure", measure)
    for _ in range(ENOUGH):
        toy.runner(toy_images([3]), deadline_ms=500)
    toy.really = [1.0] * 4
    said = []
    for _ in range(RECENT + 1):
        toy.clock.ms = 0
        said.append(toy.runner(toy_images([3]), deadline_ms=4.5).exit.tolist())
    assert said[0] == [0]
    assert said[-1] == [3]
