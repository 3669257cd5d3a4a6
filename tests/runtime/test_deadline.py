"""Deadlines: the newest exit that fits answers, judged by a clock that tests turn by hand."""

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Patience
from offramp.runtime.batching import BatchPlan, BatchTimes, SegmentTimes
from offramp.runtime.compiling import compile_runner
from offramp.runtime.deadline import ROUNDS, Deadline, sizes_up_to
from offramp.runtime.engines.engine import CompiledSegment, Program
from offramp.runtime.inputs import InputCheck
from offramp.runtime.parts import DECISION, Layout
from offramp.runtime.prediction import ExitTables, Prediction, join
from offramp.runtime.runner import Runner

SEGMENTS = 4
CPU = torch.device("cpu")
ENGINES = ("torch", "openvino")


class HandClock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms / 1e3


def made_times(
    per_sample: Sequence[float], *, exits: Sequence[int] = range(SEGMENTS), engine: str = "toy"
) -> BatchTimes:
    """Segments that take so many milliseconds per sample."""
    segments = tuple(
        SegmentTimes(exit_index=k, ms={1: ms, 64: 64 * ms}, copy_ms={1: 1e-3}, reach=1.0)
        for k, ms in zip(exits, per_sample, strict=True)
    )
    return BatchTimes(engine=engine, precision="float32", fixed=False, segments=segments)


class Toy:
    """A runner whose segments take made times on a made clock, and a log of what started when.

    Images (n, 1, 1, 2) hold where they leave by the policy, and who they are; answers say who and
    at which exit.
    """

    def __init__(self, really: Sequence[float], plan: BatchPlan | None = None) -> None:
        self.clock, self.really = HandClock(), really
        self.started: list[tuple[float, int, int]] = []  # ms, segment, samples
        program = Program(
            [self._segment(k) for k in range(SEGMENTS)], CPU, torch.float32, "float32"
        )
        self.runner = Runner(
            program,
            None,
            check=InputCheck(1, (1, 2), CPU, torch.float32),
            num_classes=2,
            tables=ExitTables(torch.arange(SEGMENTS), None, None),
            exit_names=[f"exit {k}" for k in range(SEGMENTS)],
            engine="toy",
            plan=plan,
        )
        self.runner.clock = self.clock

    def _segment(self, k: int) -> CompiledSegment:
        def call(x: Tensor) -> tuple[Tensor, ...]:
            self.started.append((self.clock.ms, k, len(x)))
            self.clock.ms += self.really[k] * len(x)
            answer = torch.stack([x[:, 0, 0, 1], torch.full((len(x),), float(k))], dim=1)
            if k == SEGMENTS - 1:
                return (answer,)
            stop = x[:, 0, 0, 0] == k
            return x + 0, answer, stop, stop.float()

        flow, says = (("x",), DECISION) if k < SEGMENTS - 1 else ((), ("answer",))
        return CompiledSegment(Layout(k, ("x" if k else "images",), flow, says), call)


def toy_images(leaves: Sequence[int]) -> Tensor:
    rows = [[float(leave), float(i)] for i, leave in enumerate(leaves)]
    return torch.tensor(rows).reshape(len(leaves), 1, 1, 2)


MS = st.floats(0.1, 8)
LEAVES = st.lists(st.integers(0, SEGMENTS - 1), min_size=1, max_size=9)


class Rides(BatchPlan):
    """Stopped samples always ride along."""

    def keep(self, stage: int, n: int, alive: int) -> int:
        return n


@settings(deadline=None, max_examples=80)
@given(
    leaves=LEAVES,
    expected=st.tuples(MS, MS, MS, MS),
    really=st.tuples(MS, MS, MS, MS),
    budget=st.floats(0, 200),
    rides=st.booleans(),
)
def test_no_segment_starts_that_does_not_fit(
    leaves: list[int],
    expected: tuple[float, ...],
    really: tuple[float, ...],
    budget: float,
    rides: bool,
) -> None:
    times = made_times(expected)
    toy = Toy(really, Rides(times) if rides else None)
    toy.runner.times = times
    said = toy.runner(toy_images(leaves), deadline_ms=budget)
    assert said.cut is not None
    for at, segment, samples in toy.started[1:]:
        assert at + expected[segment] * samples <= budget + 1e-6
    last = toy.started[-1][1]
    assert said.exit.tolist() == [min(leave, last) for leave in leaves]
    assert said.cut.tolist() == [leave > last for leave in leaves]
    assert said.logits[:, 0].tolist() == list(range(len(leaves)))
    assert said.logits[:, 1].tolist() == said.exit.tolist()
    if said.cut.any():  # and it was right to stop there
        under_way = len(leaves) if rides else int(said.cut.sum())
        assert toy.clock.ms + expected[last + 1] * under_way > budget - 1e-6


def test_true_times_end_in_time_when_the_first_segment_does() -> None:
    toy = Toy([3, 2, 2, 2])
    toy.runner.times = made_times([3, 2, 2, 2])
    for budget, exit_index in ((3.1, 0), (4.9, 0), (5.1, 1), (7.1, 2), (8.9, 2), (9.1, 3), (99, 3)):
        toy.clock.ms = 0
        exits = toy.runner(toy_images([3]), deadline_ms=budget).exit.tolist()
        assert toy.clock.ms <= budget
        assert exits == [exit_index]


def test_what_follows_the_last_segment_needs_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy((1, 1, 1, 1))
    toy.runner.times = made_times((1, 1, 1, 1))
    monkeypatch.setattr(toy.runner, "closing", lambda batch, rounds: [0.5] * rounds)
    said = toy.runner(toy_images([SEGMENTS - 1]), deadline_ms=3.4)
    assert said.exit.tolist() == [1]  # a third segment would be over at 3.0, its answer at 3.5


def test_closing_is_timed_by_the_runners_clock(model: MultiExitModel) -> None:
    runner = compile_runner(model, policy=Confidence.shared(Confidence.never, model.num_exits))
    ticks = iter(range(100))
    runner.clock = lambda: float(next(ticks))
    assert runner.closing(2, 3) == [1e3, 1e3, 1e3]
    assert sum(runner.executed.calls) == 0


def test_the_first_exit_always_answers_even_late() -> None:
    toy = Toy([3, 2, 2, 2])
    toy.runner.times = made_times([3, 2, 2, 2])
    said = toy.runner(toy_images([3, 0]), deadline_ms=0)
    assert said.cut is not None
    assert (said.exit.tolist(), said.cut.tolist()) == ([0, 0], [True, False])
    assert toy.clock.ms == 6


def test_a_slow_segment_is_paid_back_by_the_next() -> None:
    toy = Toy([1, 5, 1, 1])  # the second takes five times what it should
    toy.runner.times = made_times([1, 1, 1, 1])
    assert toy.runner(toy_images([3]), deadline_ms=4).exit.tolist() == [1]
    assert toy.runner(toy_images([3]), deadline_ms=8).exit.tolist() == [3]


def test_without_a_deadline_nobody_is_cut_and_no_clock_is_read() -> None:
    toy = Toy([1, 1, 1, 1])

    def stopped() -> float:
        raise AssertionError

    toy.runner.clock = stopped
    said = toy.runner(toy_images([3, 1]))
    assert said.cut is None
    assert said.exit.tolist() == [3, 1]
    assert toy.runner.times is None


class TestTable:
    def test_it_is_measured_once_on_the_first_batch_and_before_the_clock_starts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        toy, asked = Toy([3, 2, 2, 2]), []

        def measure(images: Tensor, sizes: Sequence[int], **options: Any) -> BatchTimes:
            asked.append((list(sizes), options))
            toy.clock.ms += 1000
            return made_times([3, 2, 2, 2])

        monkeypatch.setattr(toy.runner, "measure", measure)
        assert toy.runner(toy_images([3, 3]), deadline_ms=20).exit.tolist() == [3, 3]
        assert asked == [([1, 2], {"rounds": ROUNDS})]
        assert toy.runner.times is not None
        toy.runner(toy_images([3]), deadline_ms=5)
        toy.runner(toy_images([3] * 12), deadline_ms=inf)
        assert len(asked) == 1
        toy.runner(toy_images([3] * 12), deadline_ms=50)  # larger than any before
        assert [sizes for sizes, _ in asked] == [[1, 2], [1, 2, 4, 8, 12]]
        toy.runner(toy_images([])[:0].reshape(0, 1, 1, 2), deadline_ms=1)

    def test_one_that_is_given_is_never_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        toy = Toy([1, 1, 1, 1])
        monkeypatch.setattr(toy.runner, "measure", None)
        toy.runner.times = made_times([1, 1, 1, 1])
        assert toy.runner(toy_images([3] * 100), deadline_ms=250).exit.unique().tolist() == [1]

    def test_one_of_another_runner_is_refused(self) -> None:
        toy = Toy([1, 1, 1, 1])
        wrong = made_times([1, 1], exits=(1, 3))
        with pytest.raises(OfframpError, match=r"times were measured for exits \(1, 3\)"):
            toy.runner.times = wrong
        with pytest.raises(OfframpError, match="engine other"):
            toy.runner.times = made_times([1, 1, 1, 1], engine="other")

    def test_sizes_cover_every_number_of_survivors(self) -> None:
        assert sizes_up_to(1) == [1]
        assert sizes_up_to(3) == [1, 2, 3]
        assert sizes_up_to(20) == [1, 2, 4, 8, 16, 20]
        assert sizes_up_to(20, (1, 8, 32, 64)) == [1, 8, 32]
        assert sizes_up_to(99, (1, 8, 32, 64)) == [1, 8, 32, 64]

    def test_a_high_quantile_is_the_margin(self, model: MultiExitModel, images: Tensor) -> None:
        runner = compile_runner(model, active=())
        low, high = (
            runner.measure(images[:2], [1], rounds=5, quantile=q).segments[0].ms[1]
            for q in (0.0, 1.0)
        )
        assert low < high
        with pytest.raises(OfframpError, match="quantile = 2"):
            runner.measure(images, [1], quantile=2)


@pytest.mark.parametrize("wrong", [nan, -1, -inf, "soon", [1]])
def test_what_is_no_deadline_is_refused(wrong: Any) -> None:
    toy = Toy([1, 1, 1, 1])
    with pytest.raises(OfframpError, match=r"deadline_ms = .*milliseconds ≥ 0"):
        toy.runner(toy_images([0]), deadline_ms=wrong)
    assert toy.started == []


def test_a_deadline_runs_from_when_it_is_made() -> None:
    clock = HandClock()
    deadline = Deadline(10, clock)
    deadline.times = lambda stage, samples: 4.0
    clock.ms = 5
    assert deadline.fits(1, 1)
    clock.ms = 7
    assert not deadline.fits(1, 1)
    deadline.restart()
    assert deadline.fits(1, 1)
    clock.ms = 1e9
    assert Deadline(inf, clock).fits(1, 1)


@pytest.fixture(scope="module", params=ENGINES)
def runner(request: pytest.FixtureRequest, model: MultiExitModel, policy: Confidence) -> Runner:
    made = compile_runner(model, policy=policy, engine=request.param)
    made.clock = HandClock()
    return made


def stopped_after(runner: Runner, images: Tensor, segment: int) -> Prediction:
    """Time stands still, and the segment after this one would take longer than there is."""
    ms = [1e-6 if k <= segment else 100.0 for k in range(SEGMENTS)]
    runner.times = made_times(ms, engine=runner.engine)
    return runner(images, deadline_ms=50)


class TestEngines:
    """Tiny models: every budget gives what the exits themselves say."""

    def test_it_measures_for_itself(self, runner: Runner, images: Tensor) -> None:
        runner.times = None
        said = runner(images[:2], deadline_ms=0)
        assert said.exit.tolist() == [0, 0]
        assert runner.times is not None
        assert sorted(runner.times.segments[0].ms) == [1, 2]

    def test_infinity_is_the_plain_run_bit_for_bit(self, runner: Runner, images: Tensor) -> None:
        plain = runner(images)
        runner.times = made_times([1e-6] * 4, engine=runner.engine)
        for deadline in (inf, 1e12):
            said = runner(images, deadline_ms=deadline)
            assert torch.equal(said.logits, plain.logits)
            assert torch.equal(said.exit, plain.exit)
            assert said.cut is not None
            assert not said.cut.any()

    @pytest.mark.parametrize("segment", range(SEGMENTS))
    def test_who_is_cut_has_that_exits_logits(
        self, model: MultiExitModel, runner: Runner, images: Tensor, segment: int
    ) -> None:
        plain, said = runner(images), stopped_after(runner, images, segment)
        assert said.cut is not None
        assert torch.equal(said.exit, plain.exit.clamp(max=segment))
        assert torch.equal(said.cut, plain.exit > segment)
        assert torch.equal(said.logits[~said.cut], plain.logits[~said.cut])
        with torch.inference_mode():
            exits = torch.stack([one.logits for one in model(images)], dim=1)
        wanted = exits[torch.arange(len(images)), said.exit]
        torch.testing.assert_close(said.logits, wanted, rtol=1e-4, atol=1e-4)

    def test_riders_are_not_cut(self, runner: Runner, images: Tensor) -> None:
        wanted = stopped_after(runner, images, 2)
        assert runner.times is not None
        runner.plan = Rides(runner.times)
        found = stopped_after(runner, images, 2)
        runner.plan = None
        assert torch.equal(found.exit, wanted.exit)
        assert wanted.cut is not None
        assert found.cut is not None
        assert torch.equal(found.cut, wanted.cut)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


def test_a_policy_with_memory(model: MultiExitModel, images: Tensor) -> None:
    runner = compile_runner(model, policy=Patience(1))
    plain, said = runner(images), stopped_after(runner, images, 2)
    assert 0 < int((said.exit == 1).sum()) < len(images)
    assert torch.equal(said.exit, plain.exit.clamp(max=2))


def test_a_policy_that_never_stops_gives_pure_anytime_answers(
    model: MultiExitModel, images: Tensor
) -> None:
    runner = compile_runner(model, policy=Confidence.shared(Confidence.never, 4))
    said = stopped_after(runner, images, 1)
    assert said.cut is not None
    assert said.cut.all()
    assert said.exit.unique().tolist() == [1]


def test_predictions_are_joined_with_who_was_cut() -> None:
    toy = Toy([1, 1, 1, 1])
    toy.runner.times = made_times([1, 1, 1, 1])
    late, plain = toy.runner(toy_images([3, 0]), deadline_ms=0), toy.runner(toy_images([1]))
    assert join([plain, plain]).cut is None
    both = join([late, plain]).cut
    assert both is not None
    assert both.tolist() == [True, False, False]


def test_exits_that_are_switched_off(model: MultiExitModel, images: Tensor) -> None:
    runner = compile_runner(
        model,
        policy=Confidence.shared(Confidence.never, 4),
        active=[1],
        times=made_times([1e-6, 100], exits=(1, 3), engine="torch"),
    )
    runner.clock = HandClock()
    said = runner(images, deadline_ms=50)
    assert said.exit.unique().tolist() == [1]
    alone = compile_runner(model, active=())
    assert alone(images[:1], deadline_ms=0).exit.tolist() == [3]  # its only exit is its first
