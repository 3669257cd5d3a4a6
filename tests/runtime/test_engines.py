"""The contract of every engine: torch's answers and exits, at any batch size."""

import importlib

import pytest
import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Patience
from offramp.runtime import ENGINES, EngineOptions, Runner, compile_runner
from offramp.runtime.engines import Engine
from offramp.runtime.speaker import EngineSpeaker
from offramp.runtime.static import static_program

# engine, precision → largest difference of logits, whose spread here is about 3
CASES = {
    ("torch", "bfloat16"): 0.3,
    ("onnxruntime", "float32"): 1e-4,
    ("openvino", "float32"): 1e-4,
    ("openvino", "bfloat16"): 0.3,
}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def reference(model: MultiExitModel, policy: Confidence) -> Runner:
    return compile_runner(model, policy=policy)


@pytest.fixture(scope="module")
def runner(model: MultiExitModel, policy: Confidence, case: tuple[str, str]) -> Runner:
    return compile_runner(model, policy=policy, engine=case[0], precision=case[1])


def away(model: MultiExitModel, policy: Confidence, images: Tensor, margin: float) -> Tensor:
    """Samples whose score is not within ``margin`` of a threshold at any exit."""
    with torch.inference_mode():
        scores = torch.stack([said.logits.softmax(-1).amax(-1) for said in model(images)[:-1]], 1)
    gap = (scores - torch.tensor(policy.thresholds[:-1])).abs()
    return (gap > margin).all(1)


def test_answers_and_exits_are_torchs(
    model: MultiExitModel,
    policy: Confidence,
    images: Tensor,
    reference: Runner,
    runner: Runner,
    case: tuple[str, str],
) -> None:
    assert runner.precision == case[1]
    clear = away(model, policy, images, 1e-3)
    assert clear.sum() > 20
    for size in (1, 2, 7, 40):
        wanted, found = reference(images[:size]), runner(images[:size])
        same = wanted.exit == found.exit
        if case[1] == "float32":
            assert same[clear[:size]].all()
        elif size == len(images):  # half the samples are within bfloat16's reach of a threshold
            assert same.float().mean() > 0.8
        gap = (wanted.logits - found.logits.float())[same].abs().max()
        assert float(gap) <= CASES[case]


def test_compacted_equals_one_by_one(runner: Runner, images: Tensor, case: tuple[str, str]) -> None:
    together = runner(images)
    alone = [runner(image[None]) for image in images]
    exits = torch.cat([said.exit for said in alone])
    assert float((exits == together.exit).float().mean()) >= (1 if case[1] == "float32" else 0.9)


def test_stream_equals_single_batches(runner: Runner, images: Tensor) -> None:
    batches = [images[:3], images[3:20], images[20:20], images[20:]]
    together, streamed = runner(images), list(runner.stream(batches, batch_size=7))
    assert [len(said) for said in streamed] == [3, 17, 0, 20]
    exits = torch.cat([said.exit for said in streamed])
    same = exits == together.exit
    assert same.float().mean() >= 0.9
    logits = torch.cat([said.logits for said in streamed])
    torch.testing.assert_close(logits[same], together.logits[same], atol=0.3, rtol=0.1)


def test_answers_stay_when_the_next_batch_comes(runner: Runner, images: Tensor) -> None:
    said = runner(images[:5])
    before = said.logits.clone()
    runner(images[5:10])
    assert torch.equal(said.logits, before)


def test_only_segments_with_samples_run(runner: Runner, images: Tensor) -> None:
    exits = runner(images).exit
    runner.executed.reset()
    runner(images[exits == 0])
    assert runner.executed.calls == [1, 0, 0, 0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_policy_with_memory(model: MultiExitModel, images: Tensor, engine: str) -> None:
    wanted = compile_runner(model, policy=Patience(1))(images)
    found = compile_runner(model, policy=Patience(1), engine=engine)(images)
    assert torch.equal(wanted.exit, found.exit)


def test_fixed_shapes_change_no_answer(
    model: MultiExitModel, policy: Confidence, images: Tensor, reference: Runner
) -> None:
    runner = compile_runner(model, policy=policy, engine="openvino", batch_size=8)
    for batch in (images[:8], images[8:16], images[16:17]):
        wanted, found = reference(batch), runner(batch)
        assert torch.equal(wanted.exit, found.exit)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(OfframpError, match=r"batch of 9, but this runner was compiled for .* 8"):
        runner(images[:9])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_exit_speaks_for_the_records(
    model: MultiExitModel, images: Tensor, engine: str
) -> None:
    speaker = EngineSpeaker(model, ENGINES.get(engine)(EngineOptions()))
    with torch.inference_mode():
        wanted = model(images)
    for one, other in zip(wanted, speaker(images), strict=True):
        assert other._fields == one._fields
        torch.testing.assert_close(other.logits, one.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_unmodified_model_runs_too(model: MultiExitModel, images: Tensor, engine: str) -> None:
    whole = static_program(model.backbone, (32, 32), engine)
    with torch.inference_mode():
        torch.testing.assert_close(whole(images), model.backbone(images), atol=1e-4, rtol=1e-4)


def test_int8_keeps_most_answers(
    model: MultiExitModel, policy: Confidence, images: Tensor, reference: Runner
) -> None:
    runner = compile_runner(
        model, policy=policy, engine="openvino", precision="int8", calibration=images
    )
    wanted, found = reference(images), runner(images)
    assert runner.precision == "int8"
    assert (wanted.exit == found.exit).float().mean() > 0.6
    same = wanted.exit == found.exit
    assert (wanted.labels == found.labels)[same].float().mean() > 0.9


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_unmodified_model_runs_at_int8_too(
    model: MultiExitModel, images: Tensor, engine: str
) -> None:
    options = EngineOptions(precision="int8", calibration=images)
    whole = static_program(model.chain.whole, model.chain.image_size, engine, options=options)
    with torch.inference_mode():
        expected = model.chain.whole(images)
    same = whole(images).argmax(-1) == expected.argmax(-1)
    assert same.double().mean() > 0.8


def test_int8_without_images_is_refused(model: MultiExitModel, policy: Confidence) -> None:
    with pytest.raises(OfframpError, match=r"int8 needs images.*calibration"):
        compile_runner(model, policy=policy, engine="openvino", precision="int8")


@pytest.mark.parametrize("name", ENGINES.names())
def test_unknown_precisions_are_refused_with_what_there_is(name: str) -> None:
    engine = ENGINES.get(name)
    with pytest.raises(OfframpError, match=rf"{name}.*'int4'.*{engine.precisions[0]}"):
        engine(EngineOptions(precision="int4"))


def test_a_missing_library_names_its_extra(
    model: MultiExitModel, policy: Confidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def fail(name: str, *rest: str) -> object:
        if name == "openvino":
            raise ImportError("no openvino")
        return real(name, *rest)

    monkeypatch.setattr("offramp.runtime.extras.import_module", fail)
    with pytest.raises(OfframpError, match=r"needs openvino.*pip install 'offramp\[openvino\]'"):
        compile_runner(model, policy=policy, engine="openvino")


def test_engines_describe_themselves() -> None:
    assert all(ENGINES.describe(name) for name in ENGINES.names())
    assert all(issubclass(ENGINES.get(name), Engine) for name in ENGINES.names())
