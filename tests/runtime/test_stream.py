"""Throughput mode gives the answers of latency mode, in order, from fuller segments."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Patience
from offramp.runtime.compiling import compile_runner
from offramp.runtime.prediction import join


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 0, 17, 20], [8] * 5])
def test_stream_equals_latency_mode(
    model: MultiExitModel, policy: Confidence, images: Tensor, sizes: list[int], batch_size: int
) -> None:
    runner = compile_runner(model, policy=policy)
    whole = runner(images)
    said = list(runner.stream(images.split(sizes), batch_size=batch_size))
    assert [len(prediction) for prediction in said] == sizes
    joined = join(said)
    assert torch.equal(joined.exit, whole.exit)
    torch.testing.assert_close(joined.logits, whole.logits, rtol=1e-4, atol=1e-5)


def test_policy_memory_rides_along(model: MultiExitModel, images: Tensor) -> None:
    runner = compile_runner(model, policy=Patience(1))
    joined = join(list(runner.stream(images.split(6), batch_size=5)))
    assert torch.equal(joined.exit, runner(images).exit)


def test_deep_segments_run_full(model: MultiExitModel, policy: Confidence, images: Tensor) -> None:
    runner = compile_runner(model, policy=policy)
    repeated = images.repeat(5, 1, 1, 1)
    list(runner.stream(repeated.split(8), batch_size=8))
    calls, samples = list(runner.executed.calls), list(runner.executed.samples)
    assert calls == [-(-count // 8) for count in samples]
    runner.executed.reset()
    for batch in repeated.split(8):
        runner(batch)
    assert runner.executed.samples == samples
    assert sum(runner.executed.calls) > sum(calls)


def test_answers_come_before_the_input_ends(model: MultiExitModel, images: Tensor) -> None:
    runner = compile_runner(model, policy=Confidence.shared(Confidence.always, 4))
    taken = 0

    def source() -> Iterator[Tensor]:
        nonlocal taken
        for batch in images.split(10):
            taken += 1
            yield batch

    stream = runner.stream(source(), batch_size=10)
    next(stream)
    assert taken == 1


def test_held_back_answers_are_bounded(
    model: MultiExitModel, policy: Confidence, images: Tensor
) -> None:
    """One slow sample among quick ones would hold every later answer back."""
    never = Confidence.never
    runner = compile_runner(model, policy=Confidence([policy.thresholds[0], never, never, never]))
    exits = runner(images).exit
    late, quick = images[exits == 3][:1], images[exits == 0][:1]
    batches = [late, *[quick] * 20]
    arrived = 0

    def source() -> Iterator[Tensor]:
        nonlocal arrived
        for batch in batches:
            arrived += 1
            yield batch

    stream = runner.stream(source(), batch_size=2, max_waiting=6)
    first = next(stream)
    assert first.exit.tolist() == [3]
    assert arrived <= 8
    assert [prediction.exit.item() for prediction in stream] == [0] * 20


def test_empty_stream(model: MultiExitModel) -> None:
    runner = compile_runner(model, active=())
    assert list(runner.stream([])) == []
    (nothing,) = runner.stream([torch.zeros(0, 3, 32, 32)])
    assert nothing.logits.shape == (0, 10)


def test_bad_samples_are_named_by_their_place_in_the_stream(model: MultiExitModel) -> None:
    bad = torch.zeros(4, 3, 32, 32)
    bad[2] = float("nan")
    with pytest.raises(OfframpError, match="sample 6 "):
        list(compile_runner(model, active=()).stream([torch.zeros(4, 3, 32, 32), bad]))


def test_batch_size_must_be_positive(model: MultiExitModel) -> None:
    with pytest.raises(OfframpError, match="batch_size = 0"):
        list(compile_runner(model, active=()).stream([], batch_size=0))


def test_the_callers_grad_mode_is_left_alone(model: MultiExitModel, images: Tensor) -> None:
    for _ in compile_runner(model, active=()).stream(images.split(10), batch_size=10):
        assert not torch.is_inference_mode_enabled()
