"""Compaction changes nothing but the time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offramp.costs.macs import model_costs
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies import Confidence, Patience, Policy
from offramp.runtime.compiling import compile_runner
from offramp.runtime.prediction import Prediction, join

CLASSES = 10
MakeModel = Callable[..., MultiExitModel]
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def reference(model: MultiExitModel, policy: Policy, images: Tensor) -> tuple[Tensor, Tensor]:
    """Every exit computed for everybody, one image after the other, by the plain definition."""
    logits, exits = [], []
    for image in images:
        memory = policy.start(1)
        with torch.inference_mode():
            outputs = model(image[None])
        for k, said in enumerate(outputs):
            stop, answer, memory = policy.step(k, said, memory)
            if stop.item() or k == len(outputs) - 1:
                break
        logits.append(answer)
        exits.append(k)
    return torch.cat(logits), torch.tensor(exits)


def same(one: Prediction, other: Prediction) -> None:
    assert torch.equal(one.exit, other.exit)
    torch.testing.assert_close(one.logits, other.logits, **TOLERANCE)


def test_samples_leave_at_every_exit(
    model: MultiExitModel, policy: Confidence, images: Tensor
) -> None:
    exits = compile_runner(model, policy=policy)(images).exit
    assert exits.bincount(minlength=4).min() >= 3


@pytest.mark.parametrize("name", ["confidence", "patience"])
def test_compacted_batch_equals_one_by_one(
    model: MultiExitModel, policy: Confidence, images: Tensor, name: str
) -> None:
    chosen = policy if name == "confidence" else Patience(1)
    runner = compile_runner(model, policy=chosen)
    together = runner(images)
    same(together, join([runner(image[None]) for image in images]))
    logits, exits = reference(model, chosen, images)
    assert torch.equal(together.exit, exits)
    torch.testing.assert_close(together.logits, logits, **TOLERANCE)


def test_static_equals_dynamic_when_nothing_may_exit(model: MultiExitModel, images: Tensor) -> None:
    with torch.inference_mode():
        plain = model.backbone(images)
    never = Confidence.shared(Confidence.never, 4)
    for runner in (compile_runner(model, policy=never), compile_runner(model, active=())):
        said = runner(images)
        assert torch.equal(said.logits, plain)
        assert said.exit.unique().tolist() == [3]


def test_everybody_leaves_at_once(model: MultiExitModel, images: Tensor) -> None:
    runner = compile_runner(model, policy=Confidence.shared(Confidence.always, 4))
    said = runner(images)
    assert said.exit.unique().tolist() == [0]
    assert runner.executed.calls == [1, 0, 0, 0]


def test_segments_without_samples_are_not_executed(
    make_model: MakeModel, policy: Confidence, images: Tensor
) -> None:
    model = make_model()
    seen: list[list[int]] = [[], [], [], []]

    def watch(block: int) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[block].append(len(inputs[0]))

        model.backbone.blocks[block].register_forward_hook(hook)

    for block in range(4):
        watch(block)
    runner = compile_runner(model, policy=policy)
    for sizes in seen:
        sizes.clear()  # compiling runs an example through
    exits = runner(images).exit
    arriving = [int((exits >= k).sum()) for k in range(4)]
    assert [sum(batch) for batch in seen] == arriving == runner.executed.samples
    first = images[exits == 0]
    for sizes in seen:
        sizes.clear()
    runner.executed.reset()
    runner(first)
    assert seen == [[len(first)], [], [], []]
    assert runner.executed.samples == [len(first), 0, 0, 0]
    assert runner.executed.calls == [1, 0, 0, 0]
    assert runner.executed.exits == (0, 1, 2, 3)


def test_inactive_exits_are_merged_away(
    model: MultiExitModel, policy: Confidence, images: Tensor
) -> None:
    runner = compile_runner(model, policy=policy, active=[1])
    assert runner.active == (1,)
    assert set(runner(images).exit.tolist()) <= {1, 3}
    assert runner.executed.exits == (1, 3)


def test_prediction_tells_label_probability_blocks_and_cost(
    model: MultiExitModel, policy: Confidence, images: Tensor
) -> None:
    scaled = Confidence(policy.thresholds, [2.0, 1.0, 1.0, 4.0])
    costs = model_costs(model)
    said = compile_runner(model, policy=scaled, active=[0, 2], costs=costs)(images)
    assert len(said) == len(images)
    assert torch.equal(said.labels, said.logits.argmax(-1))
    temperature = torch.tensor(scaled.temperatures)[said.exit]
    torch.testing.assert_close(said.probs, (said.logits / temperature[:, None]).softmax(-1))
    assert torch.equal(said.blocks, said.exit + 1)
    leave = torch.tensor(costs.leave_cost([0, 2]), dtype=torch.float64)
    assert said.cost is not None
    assert torch.equal(said.cost, leave[said.exit])
    plain = compile_runner(model, policy=policy)(images)
    assert plain.cost is None
    torch.testing.assert_close(plain.probs, plain.logits.softmax(-1))


@pytest.mark.parametrize("batch", [0, 1, 2, 300])
def test_any_batch_size(model: MultiExitModel, policy: Confidence, batch: int) -> None:
    said = compile_runner(model, policy=policy)(torch.randn(batch, 3, 32, 32))
    assert said.logits.shape == (batch, CLASSES)
    assert said.probs.shape == (batch, CLASSES)
    assert said.exit.shape == said.labels.shape == said.blocks.shape == (batch,)


def test_a_runner_stays_in_evaluation_mode(
    make_model: MakeModel, policy: Confidence, images: Tensor
) -> None:
    model = make_model(drop_path_rate=0.5, proj_drop_rate=0.5)
    runner = compile_runner(model, policy=policy)
    before = runner(images)
    model.train()
    after = runner(images)
    assert torch.equal(before.logits, after.logits)
    assert model.backbone.blocks[0].training
    model.eval()
    with torch.inference_mode():
        assert torch.equal(compile_runner(model, active=())(images).logits, model.backbone(images))


def test_a_runner_shares_the_weights(model: MultiExitModel) -> None:
    own = {p.data_ptr() for p in model.backbone.parameters()}
    runner = compile_runner(model, active=())
    segment = runner._stages.segments[0].call
    assert isinstance(segment, nn.Module)
    assert {p.data_ptr() for p in segment.parameters()} == own


def test_another_device_gets_a_copy_and_leaves_the_model(
    model: MultiExitModel, images: Tensor
) -> None:
    runner = compile_runner(model, active=(), device="meta")
    segment = runner._stages.segments[0].call
    assert isinstance(segment, nn.Module)
    assert {p.device.type for p in segment.parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


class Voting(Policy):
    """Answers with the mean of all logits so far: its answer is not an exit's."""

    name = "voting"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> tuple[Tensor, ...]:
        return torch.zeros(batch, CLASSES), torch.zeros(batch, 1)

    def step(
        self, k: int, outputs: object, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        total, count = memory[0] + outputs.logits, memory[1] + 1
        answer = total / count
        return answer.softmax(-1).amax(-1) > self.threshold, answer, (total, count)

    def parameters(self) -> dict[str, object]:
        return {"threshold": self.threshold}

    @classmethod
    def candidates(cls, num_exits: int) -> list["Voting"]:
        return [cls(0.5)]


def test_memory_is_compacted_with_the_state_and_the_answer_is_the_policys(
    model: MultiExitModel, images: Tensor
) -> None:
    with torch.inference_mode():
        sure = model(images)[0].logits.softmax(-1).amax(-1).sort(descending=True).values
    policy = Voting(float(sure[9] + sure[10]) / 2)  # ten leave at the first exit
    logits, exits = reference(model, policy, images)
    assert exits.bincount()[0] == 10
    runner = compile_runner(model, policy=policy)
    for said in (runner(images), join(list(runner.stream(images.split(7), batch_size=6)))):
        assert torch.equal(said.exit, exits)
        torch.testing.assert_close(said.logits, logits, **TOLERANCE)


class TestBadInput:
    def test_nan_and_infinity_name_the_samples(self, model: MultiExitModel) -> None:
        runner = compile_runner(model, active=())
        images = torch.zeros(5, 3, 32, 32)
        images[1, 0, 3, 3] = float("nan")
        images[4, 2, 0, 0] = float("inf")
        with pytest.raises(OfframpError, match=r"samples 1, 4 \(counted from 0\)"):
            runner(images)
        with pytest.raises(OfframpError, match=r"sample 1 \("):
            runner(images[:2])

    def test_many_bad_samples_are_counted(self, model: MultiExitModel) -> None:
        images = torch.full((13, 3, 32, 32), float("nan"))
        with pytest.raises(OfframpError, match="8, 9 and 3 more"):
            compile_runner(model, active=())(images)

    def test_huge_finite_values_pass(self, model: MultiExitModel) -> None:
        images = torch.full((1, 3, 32, 32), 3e38)
        assert len(compile_runner(model, active=())(images)) == 1

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (torch.zeros(3, 32, 32), r"\(B, 3, 32, 32\), got \(3, 32, 32\); add the batch"),
            (torch.zeros(1, 3, 32, 16), r"\(B, 3, 32, 32\), got \(1, 3, 32, 16\)"),
            (torch.zeros(1, 1, 32, 32), r"got \(1, 1, 32, 32\)"),
            (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floating type, got torch.uint8"),
            ([[1.0]], "got list"),
        ],
    )
    def test_wrong_shape_or_type(self, model: MultiExitModel, images: Tensor, message: str) -> None:
        with pytest.raises(OfframpError, match=message):
            compile_runner(model, active=())(images)

    def test_other_floating_types_are_converted(
        self, model: MultiExitModel, images: Tensor
    ) -> None:
        runner = compile_runner(model, active=())
        assert torch.equal(runner(images.double()).logits, runner(images).logits)


class TestCompileErrors:
    def test_unknown_engine(self, model: MultiExitModel) -> None:
        with pytest.raises(OfframpError, match=r"unknown engine 'torhc'.*did you mean 'torch'"):
            compile_runner(model, active=(), engine="torhc")

    def test_no_policy(self, model: MultiExitModel) -> None:
        with pytest.raises(OfframpError, match="operating point or a policy"):
            compile_runner(model)

    def test_policy_of_another_depth(self, model: MultiExitModel) -> None:
        with pytest.raises(OfframpError, match="7 thresholds, but the model has 4 exits"):
            compile_runner(model, policy=Confidence.shared(0.5, 7))

    def test_costs_of_another_kind(self, model: MultiExitModel) -> None:
        costs = model_costs(model).model_copy(update={"unit": "ms"})
        with pytest.raises(OfframpError, match="expected MACs of 4"):
            compile_runner(model, active=(), costs=costs)
