"""torch.compile: the answers of eager torch from as few graphs as there are segments and sizes.

Compiling takes seconds, so most tests share one runner of two segments.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from offramp.creation import create
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence
from offramp.runtime.batching import BatchPlan
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines.compile_engine import _plain
from offramp.runtime.prediction import Prediction, join
from offramp.runtime.runner import Runner

TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(scope="module")
def small() -> MultiExitModel:
    torch.manual_seed(0)
    model = create(
        "deit_tiny_patch16_224",
        exits=[{"after": 1, "head": "linear"}],
        num_classes=10,
        image_size=16,
        backbone_args={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 3, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def half(small: MultiExitModel, pictures: Tensor) -> Confidence:
    """Half of the pictures leave at the early exit; no score is near the threshold."""
    with torch.inference_mode():
        scores = small(pictures)[0].logits.softmax(-1).amax(-1).sort().values
    return Confidence([float(scores[11] + scores[12]) / 2, 0.0])


@pytest.fixture(scope="module")
def runner(small: MultiExitModel, half: Confidence) -> Runner:
    torch._dynamo.reset()
    counters.clear()
    return compile_runner(small, policy=half, engine="torch-compile", batch_size=4)


def test_answers_are_those_of_eager_torch(
    runner: Runner, small: MultiExitModel, half: Confidence, pictures: Tensor
) -> None:
    eager = compile_runner(small, policy=half)
    wanted = eager(pictures)
    assert wanted.exit.bincount().tolist() == [12, 12]
    streamed = join(list(runner.stream(pictures.split(5), batch_size=4)))
    for said in (runner(pictures), streamed, *_again(runner, pictures)):
        assert torch.equal(said.exit, wanted.exit)
        torch.testing.assert_close(said.logits, wanted.logits, **TOLERANCE)
    runner.plan = BatchPlan(runner.measure(pictures, (1, 2, 4), rounds=1))
    try:
        assert torch.equal(runner(pictures).exit, wanted.exit)
    finally:
        runner.plan = None


def _again(runner: Runner, pictures: Tensor) -> list[Prediction]:
    return [join([runner(batch) for batch in pictures.split(size)]) for size in (1, 3)]


def test_one_graph_per_segment_and_size_and_none_on_the_second_pass(
    runner: Runner, pictures: Tensor
) -> None:
    def everything() -> None:
        for size in (1, 2, 3, 4, 7, 24):
            for batch in pictures.split(size):
                runner(batch)
        list(runner.stream(pictures.split(7), batch_size=4))
        # neither the layout of the images nor where they come from makes another graph
        runner(pictures[:4].to(memory_format=torch.channels_last))
        runner(pictures[::3][:4])
        with torch.inference_mode():
            runner(pictures[:4].clone())
        runner(pictures[3:4, :, :, :])
        runner(pictures[:4].double())

    everything()
    assert 0 < graphs() <= 2 * 3  # segments times 1, 2, 4
    before = graphs()
    everything()
    assert graphs() == before
    assert not counters["graph_break"]
    assert not any("recompile" in key for key in counters)


def test_many_sizes_do_not_fall_back_to_eager(small: MultiExitModel) -> None:
    """Dynamo gives up on a function after eight graphs; nine are made here, each its own."""
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        seen.append(1)
        return graph

    compiled = torch.compile

    def quick(function: Any, **options: Any) -> Any:
        options.pop("options")  # Inductor's
        return compiled(function, backend=backend, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", quick)
        many = compile_runner(small, active=(), engine="torch-compile")
        for _ in range(2):
            for size in many.program.sizes:
                many(torch.zeros(size, 3, 16, 16))
        assert len(seen) == len(many.program.sizes) == 9


def test_a_plain_tensor_is_the_same_memory_in_standard_form() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    with torch.inference_mode():
        for view in (x, x[1:], x[:, :1][:1], x.clone()):
            plain = _plain(view)
            assert torch.equal(plain, view)
            assert plain.is_inference()
            assert plain.stride() == torch.empty(view.shape).stride()
            assert plain.data_ptr() == view.data_ptr()
        assert torch.equal(_plain(x.transpose(1, 2)), x.transpose(1, 2))


def test_without_a_compiler_one_sentence_says_so(small: MultiExitModel) -> None:
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(OfframpError, match=r"needs a C\+\+ compiler, and none is found here"),
    ):
        compile_runner(small, active=(), engine="torch-compile")


def test_a_segment_that_cannot_be_compiled_is_named(
    small: MultiExitModel, half: Confidence, pictures: Tensor
) -> None:
    class Peeking(Confidence):
        def decide(
            self, k: int, reading: Tensor, memory: tuple[Tensor, ...]
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            print(reading.tolist())  # a graph cannot do this
            return super().decide(k, reading, memory)

    peeking = compile_runner(
        small, policy=Peeking(half.thresholds), engine="torch-compile", batch_size=4
    )
    with pytest.raises(
        OfframpError, match=r"ends in exit 0 cannot be expressed in torch\.compile \(batch 2\)"
    ):
        peeking(pictures[:2])


def test_precisions(small: MultiExitModel) -> None:
    with pytest.raises(OfframpError, match="does not compute in 'int8'"):
        compile_runner(small, active=(), engine="torch-compile", precision="int8")
    for wanted, got in (("model", "float32"), ("bf16", "bfloat16")):
        runner = compile_runner(small, active=(), engine="torch-compile", precision=wanted)
        assert runner.precision == got
        assert runner.program.dtype == getattr(torch, got)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_heads_and_sizes(
    model: MultiExitModel, policy: Confidence, images: Tensor, precision: str
) -> None:
    """Every exit of a larger model, batches up to 64, both precisions."""
    chosen = policy if precision == "float32" else Confidence.shared(Confidence.never, 4)
    torch._dynamo.reset()
    counters.clear()
    pair = [
        compile_runner(model, policy=chosen, engine=engine, precision=precision)
        for engine in ("torch-compile", "torch")
    ]
    for _ in range(2):
        for size in (1, 3, 8, 40):
            said, wanted = (runner(images[:size]) for runner in pair)
            assert torch.equal(said.exit, wanted.exit)
            loose = {"rtol": 0.1, "atol": 0.1} if precision == "bfloat16" else TOLERANCE
            torch.testing.assert_close(said.logits, wanted.logits, **loose)
    assert graphs() <= 4 * 7  # segments times 1 … 64
