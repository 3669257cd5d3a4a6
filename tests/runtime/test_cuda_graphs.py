"""CUDA graphs: what surrounds the graphs is rehearsed on CPU, where a graph is a call."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Patience, Policy
from offramp.runtime.batching import BatchPlan, BatchTimes, SegmentTimes
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines import EngineOptions
from offramp.runtime.engines import cuda_graphs_engine as cuda_graphs
from offramp.runtime.engines.cuda_graphs_engine import CudaGraphsEngine, Graph, rehearse
from offramp.runtime.parts import Part
from offramp.runtime.prediction import Prediction, join
from offramp.runtime.runner import Runner

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
GPU = torch.cuda.is_available()


class HostilePool:
    """Rehearses the worst a shared pool may do.

    Where a graph recorded earlier kept intermediate values, one recorded later may have its
    outputs: every replay of the former destroys them.
    """

    def __init__(self) -> None:
        self.recorded: list[tuple[int, Graph]] = []

    def __call__(self, part: Part, inputs: tuple[Tensor, ...]) -> Graph:
        graph = rehearse(part, inputs)
        number = len(self.recorded)

        def replay() -> None:
            graph.replay()
            own = {tensor.data_ptr() for tensor in (*graph.inputs, *graph.outputs)}
            for when, other in self.recorded:
                for tensor in other.outputs if when > number else ():
                    if tensor.data_ptr() not in own:
                        tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

        self.recorded.append((number, graph))
        return Graph(graph.inputs, graph.outputs, replay)


@pytest.fixture(params=["rehearsed", "hostile"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "hostile":
        monkeypatch.setattr(cuda_graphs, "rehearse", HostilePool())


def rehearsed(model: MultiExitModel, policy: Policy, batch_size: int | None = None) -> Runner:
    return compile_runner(
        model, policy=policy, engine="cuda-graphs", device="cpu", batch_size=batch_size
    )


def same(one: Prediction, other: Prediction) -> None:
    assert torch.equal(one.exit, other.exit)
    torch.testing.assert_close(one.logits, other.logits, **TOLERANCE)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("batch_size", [None, 1, 24])
@pytest.mark.parametrize("patient", [False, True])
def test_answers_are_those_of_torch(
    model: MultiExitModel,
    policy: Confidence,
    images: Tensor,
    batch_size: int | None,
    patient: bool,
) -> None:
    chosen = Patience(1) if patient else policy  # patience carries memory from exit to exit
    eager = compile_runner(model, policy=chosen)
    runner = rehearsed(model, chosen, batch_size)
    expected = eager(images)
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    for order in (torch.arange(40), mixed):
        batches = images[order].split([1, 2, 5, 32])  # sizes grow: recorded as they come
        same(join([runner(batch) for batch in batches]), eager(images[order]))
    same(runner(images), expected)
    same(join(list(runner.stream(images.split(6), batch_size=7))), expected)


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    table=st.lists(st.floats(0.1, 9), min_size=16, max_size=16),
    batch_size=st.sampled_from([None, 8, 20]),
    patient=st.booleans(),
)
def test_no_plan_reads_what_another_graph_may_have_written(
    model: MultiExitModel,
    policy: Confidence,
    images: Tensor,
    sizes: list[int],
    table: list[float],
    batch_size: int | None,
    patient: bool,
) -> None:
    chosen = Patience(1) if patient else policy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_graphs, "rehearse", HostilePool())
        runner = rehearsed(model, chosen, batch_size)
    segments = [
        SegmentTimes(
            exit_index=k,
            ms=dict(zip((1, 4, 8, 32), table[4 * k : 4 * k + 4], strict=True)),
            copy_ms={1: 0.1},
            reach=1,
        )
        for k in range(4)
    ]
    runner.plan = BatchPlan(
        BatchTimes(engine="cuda-graphs", precision="float32", fixed=True, segments=tuple(segments))
    )
    eager = compile_runner(model, policy=chosen)
    for size in sizes:
        same(runner(images[:size]), eager(images[:size]))
    streamed = runner.stream(images.split(sizes[0]), batch_size=sizes[-1])
    same(join(list(streamed)), eager(images))


def test_each_size_is_recorded_once_and_the_rest_is_copies(
    model: MultiExitModel, policy: Confidence, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []

    def watched(part: Part, inputs: tuple[Tensor, ...]) -> Graph:
        recorded.append(len(inputs[0]))
        return rehearse(part, inputs)

    monkeypatch.setattr(cuda_graphs, "rehearse", watched)
    never = Confidence.shared(Confidence.never, 4)
    runner = rehearsed(model, never)
    assert recorded == []
    runner(images[:5])
    runner(images[:8])
    assert recorded == [8] * 4
    recorded.clear()
    rehearsed(model, never, batch_size=6)
    assert recorded == [6] * 4 + [4] * 4 + [2] * 4 + [1] * 4  # the largest first


def test_where_nobody_leaves_nothing_is_copied(
    model: MultiExitModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def idle(part: Part, inputs: tuple[Tensor, ...]) -> Graph:
        return rehearse(part, inputs)._replace(replay=lambda: None)

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.copy_.default:
                seen.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(cuda_graphs, "rehearse", idle)
    runner = rehearsed(model, Confidence.shared(Confidence.never, 4), batch_size=8)
    seen: list[tuple[int, ...]] = []
    with Copies():
        runner(images[:5])
    assert seen == [(5, 3, 32, 32)]  # the images, to where the first graph reads


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions(model: MultiExitModel, images: Tensor, precision: str) -> None:
    always = Confidence.shared(Confidence.always, 4)
    pair = [
        compile_runner(model, policy=always, engine=engine, device="cpu", precision=precision)
        for engine in ("cuda-graphs", "torch")
    ]
    assert pair[0].precision == precision
    torch.testing.assert_close(pair[0](images).logits, pair[1](images).logits, rtol=0.05, atol=0.05)


def test_the_table_is_measured_at_its_sizes(
    model: MultiExitModel, policy: Confidence, images: Tensor
) -> None:
    runner = rehearsed(model, policy)
    times = runner.measure(images, (1, 4, 8), rounds=1)
    assert times.fixed
    runner.plan = BatchPlan(times)
    same(runner(images), compile_runner(model, policy=policy)(images))


def test_a_part_that_cannot_be_recorded_is_named(
    model: MultiExitModel, policy: Confidence, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(part: Part, inputs: tuple[Tensor, ...]) -> Graph:
        if part.layout.exit_index == 1:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return rehearse(part, inputs)

    monkeypatch.setattr(cuda_graphs, "rehearse", refuse)
    message = r"ends in exit 1 cannot be expressed in a CUDA graph \(batch 4\).*not permitted"
    with pytest.raises(OfframpError, match=message):
        rehearsed(model, policy)(images[:3])


class TestWithoutAGpu:
    @pytest.fixture(autouse=True)
    def _none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    @pytest.mark.parametrize("device", [None, "cuda", "cuda:1"])
    def test_one_sentence_says_so(self, model: MultiExitModel, device: str | None) -> None:
        with pytest.raises(OfframpError, match="needs an NVIDIA GPU, and torch finds none here"):
            compile_runner(model, active=(), engine="cuda-graphs", device=device)


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(OfframpError, match="runs on device 'cuda', not 'meta'"):
        CudaGraphsEngine(EngineOptions(device=torch.device("meta")))
    with pytest.raises(OfframpError, match="does not compute in 'int8'"):
        CudaGraphsEngine(EngineOptions(precision="int8"))


class TestBenchmark:
    @pytest.fixture(scope="class")
    def script(self) -> dict[str, Any]:
        return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "cuda_graphs.py"))

    def test_a_dry_run_goes_all_the_way(
        self, script: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = script["main"](script["parser"]().parse_args(["--dry-run", "--rounds", "2"]))
        assert [(row["engine"], row["batch_size"]) for row in found["rows"]] == [
            ("cuda-graphs", 4),
            ("torch", 4),
            ("cuda-graphs", 8),
            ("torch", 8),
        ]
        for row in found["rows"]:
            assert row["images"] == 16
            # a fifth of sixteen images leaves at each early exit
            assert row["reach"] == [1.0, 13 / 16, 10 / 16, 7 / 16]
            assert len(row["segment_ms"]) == 4
            assert min(*row["segment_ms"], row["realised"], row["full_ms"]) > 0
            assert BatchTimes.model_validate(row["plan"]).fixed == (row["engine"] == "cuda-graphs")
        assert capsys.readouterr().out.count("realised/ideal") == 4

    def test_without_a_gpu_one_sentence_says_so(
        self, script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(OfframpError, match="needs an NVIDIA GPU"):
            script["main"](script["parser"]().parse_args([]))


@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
class TestOnAGpu:
    @pytest.mark.parametrize("batch_size", [None, 24])
    def test_graphs_answer_like_eager_torch(
        self, make_model: Callable[..., MultiExitModel], policy: Confidence, batch_size: int | None
    ) -> None:
        model = make_model().cuda()
        images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()
        eager = compile_runner(model, policy=policy)
        runner = compile_runner(model, policy=policy, engine="cuda-graphs", batch_size=batch_size)
        for size in (1, 5, 40, 3, 24):
            said, wanted = runner(images[:size]), eager(images[:size])
            near = (said.exit != wanted.exit).sum()  # a score may lie on a threshold
            assert near <= 1
            agree = said.exit == wanted.exit
            torch.testing.assert_close(
                said.logits[agree], wanted.logits[agree], rtol=1e-2, atol=1e-2
            )
        runner.plan = BatchPlan(runner.measure(images, (1, 4, 8, 16), rounds=2))
        assert (runner(images).exit == eager(images).exit).sum() >= 39
