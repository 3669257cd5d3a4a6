"""Plans from measured times: they change when something runs, never what is answered."""

import weakref
from collections.abc import Iterator
from itertools import combinations_with_replacement, product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime.batching import BatchPlan, BatchTimes, SegmentTimes
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines.engine import CompiledSegment, Program
from offramp.runtime.inputs import InputCheck
from offramp.runtime.parts import DECISION, Layout
from offramp.runtime.pieces import covering, in_pieces, powers_of_two
from offramp.runtime.prediction import ExitTables, Prediction, join
from offramp.runtime.runner import Runner
from offramp.runtime.stages import Flow, Stages
from offramp.runtime.timing import arriving, measure_program

SEGMENTS = 4
SIZES = (1, 2, 4, 8, 16)
CPU = torch.device("cpu")


def toy_program(*, sizes: tuple[int, ...] = (), garbage: bool = True) -> Program:
    """Images (n, 1, 1, 2) hold where they leave and who they are; answers say both.

    Whoever has left says nonsense from then on, which nobody may hear.
    """

    def segment(k: int) -> Any:
        def call(x: Tensor) -> tuple[Tensor, ...]:
            leave, who = x[:, 0, 0, 0], x[:, 0, 0, 1]
            late = (leave < k) & garbage
            answer = torch.stack([who + 1000 * k - 1e6 * late, who], dim=1)
            if k == SEGMENTS - 1:
                return (answer,)
            stop = (leave == k) | (late & (who % 2 == 0))
            return x + 0, answer, stop, stop.float()

        flow, says = (("x",), DECISION) if k < SEGMENTS - 1 else ((), ("answer",))
        return CompiledSegment(Layout(k, ("x" if k else "images",), flow, says), call)

    segments = [segment(k) for k in range(SEGMENTS)]
    return Program(segments, CPU, torch.float32, "float32", sizes=sizes)


def toy_runner(program: Program | None = None, plan: BatchPlan | None = None) -> Runner:
    return Runner(
        program or toy_program(),
        None,
        check=InputCheck(1, (1, 2), CPU, torch.float32),
        num_classes=2,
        tables=ExitTables(torch.arange(SEGMENTS), None, None),
        exit_names=[f"exit {k}" for k in range(SEGMENTS)],
        engine="toy",
        plan=plan,
    )


def toy_images(leaves: list[int], first: int = 0) -> Tensor:
    rows = [[float(leave), float(first + i)] for i, leave in enumerate(leaves)]
    return torch.tensor(rows).reshape(len(leaves), 1, 1, 2)


def answered_once(said: Prediction, leaves: list[int]) -> None:
    """Everybody left where they wanted, with their own answer, in the order they came."""
    assert said.exit.tolist() == leaves
    assert said.logits.tolist() == [[who + 1000 * k, who] for who, k in enumerate(leaves)]


def made_times(
    ms: list[dict[int, float]],
    copy_ms: float = 0.01,
    reach: list[float] | None = None,
    *,
    fixed: bool = False,
) -> BatchTimes:
    reach = reach or [1.0] * len(ms)
    segments = [
        SegmentTimes(exit_index=k, ms=row, copy_ms={1: copy_ms}, reach=share)
        for k, (row, share) in enumerate(zip(ms, reach, strict=True))
    ]
    return BatchTimes(engine="toy", precision="float32", fixed=fixed, segments=tuple(segments))


milliseconds = st.floats(0.01, 100)
leaving = st.lists(st.integers(0, SEGMENTS - 1), min_size=1, max_size=30)


@st.composite
def any_times(draw: st.DrawFn, segments: int = SEGMENTS) -> BatchTimes:
    """Any table at all: times need not even grow with the batch."""
    sizes = draw(st.sets(st.integers(1, 20), min_size=1, max_size=4))
    table = st.fixed_dictionaries(dict.fromkeys(sizes, milliseconds))
    rows = [
        SegmentTimes(exit_index=k, ms=draw(table), copy_ms=draw(table), reach=draw(st.floats(0, 1)))
        for k in range(segments)
    ]
    fixed = draw(st.booleans())
    return BatchTimes(engine="toy", precision="float32", fixed=fixed, segments=tuple(rows))


class Whims(BatchPlan):
    """A plan that decides as a generator of numbers pleases."""

    def __init__(self, seed: int) -> None:
        super().__init__(made_times([{1: 1.0}] * SEGMENTS))
        self._draw = np.random.default_rng(seed)

    def calls(self, stage: int, n: int) -> tuple[int, ...]:
        sizes: list[int] = []
        while sum(sizes) < n:
            sizes.append(int(self._draw.integers(1, n + 3)))
        return tuple(sizes)

    def keep(self, stage: int, n: int, alive: int) -> int:
        return int(self._draw.integers(alive, n + 1))

    def best_size(self, stage: int, limit: int) -> int:
        return int(self._draw.integers(1, limit + 1))

    def waits(self, stage: int, waiting: int, limit: int) -> bool:
        return waiting < limit and bool(self._draw.integers(2))


class TestWhateverThePlan:
    @settings(deadline=None, max_examples=150)
    @given(leaving, any_times(), st.booleans())
    def test_a_table_changes_no_answer(
        self, leaves: list[int], times: BatchTimes, shaped: bool
    ) -> None:
        program = toy_program(sizes=tuple(times.segments[0].ms) if shaped else ())
        answered_once(toy_runner(program, BatchPlan(times))(toy_images(leaves)), leaves)

    @settings(deadline=None, max_examples=150)
    @given(leaving, st.integers(0, 2**32))
    def test_whims_change_no_answer(self, leaves: list[int], seed: int) -> None:
        answered_once(toy_runner(plan=Whims(seed))(toy_images(leaves)), leaves)

    @settings(deadline=None, max_examples=100)
    @given(
        leaving,
        st.one_of(any_times().map(BatchPlan), st.integers(0, 2**32).map(Whims)),
        st.lists(st.integers(0, 8), max_size=6),
        st.integers(1, 12),
        st.integers(0, 40),
    )
    def test_nor_the_order_of_a_stream(
        self, leaves: list[int], plan: BatchPlan, cuts: list[int], batch_size: int, most: int
    ) -> None:
        places = np.cumsum(cuts).clip(max=len(leaves)).tolist()
        batches = torch.tensor_split(toy_images(leaves), places)
        runner = toy_runner(plan=plan)
        said = list(runner.stream(batches, batch_size=batch_size, max_waiting=most))
        assert [len(one) for one in said] == [len(batch) for batch in batches]
        answered_once(join(said), leaves)

    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 40), any_times(), st.integers(1, 20))
    def test_on_a_real_model(
        self,
        model: MultiExitModel,
        policy: Confidence,
        images: Tensor,
        count: int,
        times: BatchTimes,
        batch_size: int,
    ) -> None:
        times = times.model_copy(update={"engine": "torch"})
        compacted = compile_runner(model, policy=policy)(images[:count])
        runner = compile_runner(model, policy=policy, plan=BatchPlan(times))
        streamed = join(list(runner.stream(images[:count].split(7), batch_size=batch_size)))
        for said in (runner(images[:count]), streamed):
            assert torch.equal(said.exit, compacted.exit)
            torch.testing.assert_close(said.logits, compacted.logits, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("fixed", [False, True])
    def test_on_other_engines(
        self, model: MultiExitModel, policy: Confidence, images: Tensor, engine: str, fixed: bool
    ) -> None:
        """Riding, filled up and cut in pieces, whatever memory the engine answers in."""
        pytest.importorskip(engine)
        runner = compile_runner(model, policy=policy, active=[0, 2], engine=engine)
        wanted = compile_runner(model, policy=policy, active=[0, 2])(images)
        for ms in ({4: 1.0, 16: 1.0, 64: 1.0}, {4: 1.0, 16: 3.0, 64: 99.0}):
            times = made_times([ms] * 3, fixed=fixed)
            segments = [
                segment.model_copy(update={"exit_index": k})
                for segment, k in zip(times.segments, runner.executed.exits, strict=True)
            ]
            change = {"engine": engine, "segments": tuple(segments)}
            runner.plan = BatchPlan(times.model_copy(update=change))
            streamed = join(list(runner.stream(images.split(7), batch_size=16)))
            for said in (runner(images), streamed):
                assert torch.equal(said.exit, wanted.exit)
                torch.testing.assert_close(said.logits, wanted.logits, rtol=1e-3, atol=1e-3)


class TestStages:
    def test_riders_are_kept_where_they_lie(self) -> None:
        """Nothing is copied while they ride, and what they say later is not heard."""
        stages = Stages(toy_program(), BatchPlan(made_times([{1: 5.0, 16: 5.0}] * SEGMENTS, 9.0)))
        flow: Flow | None = Flow(None, (toy_images([0, 3, 1, 3, 0]),))
        heard = []
        for stage in range(SEGMENTS):
            assert flow is not None
            assert flow.samples == 5
            flow, departure = stages.advance(stage, flow)
            heard.append([] if departure is None else departure.answer[:, 1].tolist())
            if stage < SEGMENTS - 1:
                assert flow is not None
                assert flow.gone is not None
                assert flow.rows is None
                assert flow.riders == flow.gone.sum()
        assert heard == [[0, 4], [2], [], [1, 3]]
        assert stages.executed.samples == [5, 5, 5, 5]

    def test_spare_places_of_a_shape_go_to_riders(self) -> None:
        times = made_times([{2: 1.0, 4: 2.0, 8: 4.0}] * SEGMENTS, fixed=True)
        stages = Stages(toy_program(sizes=(2, 4, 8)), BatchPlan(times))
        flow, _ = stages.advance(0, Flow(None, (toy_images([0, 3, 0, 3, 0, 3, 0, 0]),)))
        assert flow is not None
        assert flow.samples == 4
        assert flow.gone is not None
        assert flow.gone.tolist() == [False, False, False, True]
        assert flow.rows is not None
        assert flow.rows.tolist() == [1, 3, 5, 0]

    def test_the_device_is_waited_for_once_per_segment(self) -> None:
        waits = 0

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                nonlocal waits
                waits += func is torch.ops.aten._local_scalar_dense.default
                return func(*args, **(kwargs or {}))

        ride = made_times([{1: 5.0, 16: 5.0}] * SEGMENTS, 9.0)
        for plan in (None, BatchPlan(ride), Whims(1)):
            stages, waits = Stages(toy_program(), plan), 0
            flow: Flow | None = Flow(None, (toy_images([0, 1, 2, 3] * 4),))
            with Watch():
                for stage in range(SEGMENTS):
                    assert flow is not None
                    flow, _ = stages.advance(stage, flow)
            assert waits == SEGMENTS - 1

    def test_a_stream_carries_no_riders(self) -> None:
        ride = BatchPlan(made_times([{1: 5.0, 16: 5.0}] * SEGMENTS, 9.0))
        runner = toy_runner(plan=ride)
        answered_once(join(list(runner.stream([toy_images([0, 1, 2, 3] * 4)]))), [0, 1, 2, 3] * 4)
        assert runner.executed.samples == [16, 12, 8, 4]


class TestSizes:
    def test_powers_of_two_hold_the_largest(self) -> None:
        assert powers_of_two(1) == (1,)
        assert powers_of_two(32) == (1, 2, 4, 8, 16, 32)
        assert powers_of_two(48) == (1, 2, 4, 8, 16, 32, 48)

    @given(st.integers(1, 300), st.integers(1, 64))
    def test_a_covering_holds_everybody_in_as_few_calls_as_there_may_be(
        self, n: int, largest: int
    ) -> None:
        sizes = covering(n, powers_of_two(largest))
        assert len(sizes) == ceil(n / largest)
        assert sum(sizes[:-1]) < n <= sum(sizes)
        assert sizes[-1] < 2 * (n - sum(sizes[:-1]))

    @given(st.integers(1, 20), st.lists(st.integers(1, 8), min_size=1), st.booleans())
    def test_pieces_are_the_whole(self, n: int, sizes: list[int], filled: bool) -> None:
        while sum(sizes) < n:
            sizes.append(3)
        while sum(sizes[:-1]) >= n:
            sizes.pop()
        seen = []

        def call(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            seen.append(len(x))
            assert torch.equal(x[:, 0], y)
            return 2 * x, y - 1

        x = torch.arange(n * 3).reshape(n, 3)
        double, less = in_pieces(call, (x, x[:, 0]), sizes, filled=filled)
        assert torch.equal(double, 2 * x)
        assert torch.equal(less, x[:, 0] - 1)
        assert seen == (sizes if filled else [*sizes[:-1], n - sum(sizes[:-1])])

    @settings(deadline=None)
    @given(any_times(segments=2), st.integers(1, 25))
    def test_shapes_are_covered_at_the_least_cost(self, times: BatchTimes, n: int) -> None:
        times = times.model_copy(update={"fixed": True})
        plan, ms = BatchPlan(times), times.segments[1].ms  # the last: nothing is joined behind it
        coverings = [
            sizes
            for count in range(1, 4)
            for sizes in combinations_with_replacement(sorted(ms), count)
            if sum(sizes) >= n
        ]
        sizes = plan.calls(1, n)
        assert sum(sizes) >= n > sum(sizes[:-1])
        assert plan.time(1, n) == pytest.approx(sum(ms[size] for size in sizes))
        for other in coverings:
            assert plan.time(1, n) <= sum(ms[size] for size in other) * (1 + 1e-9)

    @settings(deadline=None)
    @given(any_times(segments=1), st.integers(1, 40))
    def test_time_never_falls_as_batches_grow(self, times: BatchTimes, n: int) -> None:
        plan = BatchPlan(times)
        assert plan.time(0, n) <= plan.time(0, n + 1) * (1 + 1e-9)

    def test_between_measured_sizes_times_lie_on_a_line(self) -> None:
        plan = BatchPlan(made_times([{2: 3.0, 6: 7.0}]))
        assert [plan.time(0, n) for n in (1, 2, 3, 5, 6, 12)] == [3, 3, 4, 6, 7, 14]
        assert [plan.calls(0, n) for n in (1, 3, 12)] == [(1,), (3,), (12,)]

    def test_a_larger_size_that_is_quicker_is_filled_up_to(self) -> None:
        plan = BatchPlan(made_times([{1: 1.0, 7: 9.0, 8: 4.0}]))
        assert [plan.calls(0, n) for n in (1, 3, 7, 8)] == [(1,), (3,), (8,), (8,)]
        assert plan.time(0, 7) == 4
        dear = BatchPlan(made_times([{1: 1.0, 7: 4.5, 8: 4.0}], copy_ms=0.9))
        assert dear.calls(0, 7) == (7,)  # copying seven images there costs more than it saves


class TestCompaction:
    def test_it_pays_where_time_grows_with_the_batch(self) -> None:
        plan = BatchPlan(made_times([{1: 1.0, 64: 64.0}] * 3, reach=[1, 0.5, 0.25]))
        assert [plan.keep(0, 64, alive) for alive in (1, 32, 63)] == [1, 32, 63]

    def test_it_does_not_where_time_is_the_same(self) -> None:
        plan = BatchPlan(made_times([{1: 5.0, 64: 5.0}] * 3, reach=[1, 0.5, 0.25]))
        assert plan.keep(0, 64, 1) == 64

    def test_one_copy_may_pay_over_several_segments(self) -> None:
        ms = {4: 4.0, 8: 5.0}
        copy = 1.5 / 4  # four samples: more than one segment saves, less than two do
        for left, kept in ((2, 4), (1, 8)):
            plan = BatchPlan(made_times([ms] * (1 + left), copy))
            assert plan.keep(0, 8, 4) == kept

    @settings(deadline=None, max_examples=60)
    @given(any_times(), st.integers(2, 20), st.data())
    def test_it_is_what_trying_all_ways_on_says(
        self, times: BatchTimes, n: int, data: st.DataObject
    ) -> None:
        """Every choice at every later segment, with as many leaving there as the table expects."""
        alive = data.draw(st.integers(1, n - 1))
        plan = BatchPlan(times)

        def expected(choices: tuple[bool, ...]) -> float:
            rows, living, ms = n, alive, 0.0
            for stage, compacts in enumerate(choices, start=1):
                left = living if stage == 1 else ceil(living * plan.survival[stage - 1])
                if not left:
                    break
                if compacts and left < rows:
                    rows = min(rows, sum(plan.calls(stage, left)))
                    ms += plan._copy[stage](rows)
                living = left
                ms += plan.time(stage, rows)
            return ms

        ways = list(product([False, True], repeat=SEGMENTS - 1))
        ride = min(expected(way) for way in ways if not way[0])
        pack = min(expected(way) for way in ways if way[0])
        fits = min(n, sum(plan.calls(1, alive)))
        if fits == n or abs(ride - pack) > 1e-9:
            assert plan.keep(0, n, alive) == (fits if pack < ride else n)


class TestThroughput:
    def test_the_best_size_is_the_smallest_of_the_quickest_per_sample(self) -> None:
        plan = BatchPlan(made_times([{1: 2.0, 8: 8.0, 16: 12.0, 32: 23.9, 64: 60.0}]))
        assert [plan.best_size(0, limit) for limit in (1, 8, 31, 32, 64)] == [1, 8, 16, 16, 16]
        assert BatchPlan(made_times([{8: 1.0}])).best_size(0, 4) == 4

    def test_waiting_pays_while_each_saves_more_than_joining_costs(self) -> None:
        plan = BatchPlan(made_times([{1: 4.0, 8: 11.0, 16: 16.0}], copy_ms=0.25))
        # 1 + 3 / n ms a sample up to eight; in the best batch, sixteen, it is 1
        assert [plan.waits(0, n, 64) for n in (1, 8, 15, 16, 17)] == [True, True, False] + [
            False
        ] * 2
        flat = BatchPlan(made_times([{1: 1.0, 16: 16.0}]))
        assert not flat.waits(0, 1, 16)

    def test_deep_segments_run_at_their_best_size(self) -> None:
        steep = {1: 10.0, 4: 11.0, 8: 30.0}
        runner = toy_runner(plan=BatchPlan(made_times([steep] * SEGMENTS)))
        leaves = [0, 1, 2, 3] * 16
        answered_once(join(list(runner.stream(toy_images(leaves).split(5)))), leaves)
        assert runner.executed.samples == [64, 48, 32, 16]
        assert runner.executed.calls == [16, 12, 8, 4]  # four at a time, whatever arrives

    def test_answers_do_not_wait_where_waiting_does_not_pay(self) -> None:
        runner = toy_runner(plan=BatchPlan(made_times([{1: 1.0, 64: 64.0}] * SEGMENTS)))
        arrived = 0

        def source() -> Iterator[Tensor]:
            nonlocal arrived
            for _ in range(10):
                arrived += 1
                yield toy_images([3])

        next(runner.stream(source(), batch_size=64))
        assert arrived == 1


class TestStream:
    """A data set larger than memory goes through, in order."""

    @pytest.mark.parametrize("plan", [None, Whims(3)], ids=["exact", "whims"])
    @pytest.mark.parametrize("size", [5, 16, 50])
    def test_batches_are_released_and_answers_follow(
        self, plan: BatchPlan | None, size: int
    ) -> None:
        leaves = np.random.default_rng(0).choice(SEGMENTS, 2000, p=[0.6, 0.3, 0.08, 0.02]).tolist()
        alive, most, pulled = 0, 0, 0

        def release() -> None:
            nonlocal alive
            alive -= 1

        def source() -> Iterator[Tensor]:
            nonlocal alive, most, pulled
            for start in range(0, len(leaves), size):
                array = toy_images(leaves[start : start + size], start).numpy().copy()
                weakref.finalize(array, release)
                alive, pulled = alive + 1, pulled + len(array)
                most = max(most, alive)
                yield torch.from_numpy(array)
                del array

        said: list[Prediction] = []
        handed = 0
        stream = toy_runner(plan=plan).stream(source(), batch_size=16, max_waiting=100)
        for prediction in stream:
            assert pulled - handed <= 100 + 2 * size
            handed += len(prediction)
            said.append(prediction)
        answered_once(join(said), leaves)
        assert most == 1

    def test_the_source_may_reuse_its_buffer(self) -> None:
        leaves = [0, 1, 2, 3, 3, 2, 1] * 10
        buffer = torch.empty(7, 1, 1, 2)

        def source() -> Iterator[Tensor]:
            for start in range(0, len(leaves), 7):
                yield buffer.copy_(toy_images(leaves[start : start + 7], start))

        answered_once(join(list(toy_runner().stream(source(), batch_size=16))), leaves)


class TestMeasuring:
    def test_segments_are_timed_on_those_who_come_there(self) -> None:
        leaves = [0] * 10 + [1] * 4 + [3] * 6
        flows, reach = arriving(toy_program(), toy_images(leaves), lambda batch: (), most=7)
        assert reach == [1.0, 0.5, 0.3, 0.3]
        assert [flow[0][:, 0, 0, 0].tolist() for flow in flows] == [
            [0] * 7,
            [1] * 4 + [3] * 3,
            [3] * 6,
            [3] * 6,
        ]

    def test_where_nobody_comes_the_last_who_did_are_taken(self) -> None:
        flows, reach = arriving(toy_program(), toy_images([0, 1]), lambda batch: (), most=4)
        assert reach == [1.0, 0.5, 0.0, 0.0]
        assert [flow[0][:, 0, 0, 1].tolist() for flow in flows] == [[0, 1], [1], [1], [1]]

    def test_the_table_of_a_real_runner(
        self, model: MultiExitModel, policy: Confidence, images: Tensor, tmp_path: Path
    ) -> None:
        runner = compile_runner(model, policy=policy)
        before = runner(images)
        times = runner.measure(images, (4, 1), rounds=2)
        assert times.exits == (0, 1, 2, 3)
        assert not times.fixed
        assert times.engine == "torch"
        assert times.meta["hardware"]["threads"] == torch.get_num_threads()
        for k, segment in enumerate(times.segments):
            assert list(segment.ms) == list(segment.copy_ms) == [1, 4]
            assert segment.reach == pytest.approx((before.exit >= k).double().mean().item())
        assert runner.executed.calls == [1, 1, 1, 1]  # measuring is not answering
        times.save(tmp_path / "times.json")
        assert BatchTimes.load(tmp_path / "times.json") == times
        runner.plan = BatchPlan(times)
        after = runner(images)
        assert torch.equal(after.exit, before.exit)

    def test_bad_requests(self) -> None:
        with pytest.raises(OfframpError, match="at least one image"):
            measure_program(toy_program(), torch.zeros(0, 1, 1, 2), engine="toy")
        with pytest.raises(OfframpError, match=r"batch sizes \[0, 2\]"):
            measure_program(toy_program(), toy_images([1]), (2, 0), engine="toy")

    def test_a_plan_of_another_program_is_refused(
        self, model: MultiExitModel, policy: Confidence
    ) -> None:
        times = made_times([{1: 1.0}] * 4)
        for changed, message in (
            ({}, "engine toy, but this runner has torch"),
            ({"engine": "torch", "precision": "bfloat16"}, "precision bfloat16"),
            ({"engine": "torch", "segments": times.segments[:3]}, r"exits \(0, 1, 2\)"),
        ):
            plan = BatchPlan(times.model_copy(update=changed))
            with pytest.raises(OfframpError, match=message):
                compile_runner(model, policy=policy, plan=plan)

    @pytest.mark.parametrize(
        "wrong", [{"ms": {1: 0.0}}, {"ms": {0: 1.0}}, {"ms": {}}, {"reach": 1.5}]
    )
    def test_impossible_tables_are_refused(self, wrong: dict[str, Any], tmp_path: Path) -> None:
        good = {"exit_index": 0, "ms": {1: 1.0}, "copy_ms": {1: 1.0}, "reach": 1.0}
        with pytest.raises(ValidationError):
            SegmentTimes.model_validate({**good, **wrong})
        file = tmp_path / "times.json"
        made_times([{1: 1.0}]).save(file)
        file.write_text(file.read_text().replace('"exit_index": 0', '"exit_index": "x"'))
        with pytest.raises(OfframpError, match=r"times.json: segments.0.exit_index"):
            BatchTimes.load(file)
