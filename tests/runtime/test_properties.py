"""For any thresholds, patience, exits and batch sizes: live, streamed and replayed are one."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.exits import Outputs
from offramp.model import MultiExitModel
from offramp.policies import POLICIES, Patience, Policy
from offramp.policies.threshold import ThresholdPolicy
from offramp.runtime.prediction import join
from offramp.runtime.runner import compile_runner

THRESHOLDS = sorted(
    name for name in POLICIES.names() if issubclass(POLICIES.get(name), ThresholdPolicy)
)


def expected(policy: Policy, logits: Tensor, active: list[int]) -> Tensor:
    """Exit of every sample by the definition, on what the whole model said at once: (N,)."""
    last = logits.shape[1] - 1
    memory = policy.start(len(logits))
    exits = torch.full((len(logits),), last)
    for k in active:
        stop, _, memory = policy.step(k, Outputs(logits[:, k]), memory)
        exits = torch.where(stop & (exits == last), k, exits)
    return exits


def midway(name: str, ranks: list[int], logits: Tensor) -> Policy:
    """Thresholds between neighbouring observed scores, so that rounding decides nothing."""
    reader = POLICIES.get(name).shared(0.0, logits.shape[1])
    thresholds = []
    for k, rank in enumerate(ranks):
        score = reader.read(k, Outputs(logits[:, k])).sort().values
        thresholds.append(float(score[rank] + score[rank + 1]) / 2)
    return POLICIES.get(name)([*thresholds, 0.0])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([*THRESHOLDS, "patience"]),
    ranks=st.lists(st.integers(0, 38), min_size=3, max_size=3),
    patience=st.integers(1, 3),
    active=st.sets(st.integers(0, 2)).map(sorted),
    sizes=st.lists(st.integers(0, 15), max_size=5),
    batch_size=st.integers(1, 20),
)
def test_live_equals_streamed_equals_definition(
    model: MultiExitModel,
    images: Tensor,
    name: str,
    ranks: list[int],
    patience: int,
    active: list[int],
    sizes: list[int],
    batch_size: int,
) -> None:
    with torch.inference_mode():
        logits = torch.stack([said.logits for said in model(images)], dim=1)
    policy = Patience(patience) if name == "patience" else midway(name, ranks, logits)
    exits = expected(policy, logits, active)
    answers = logits[torch.arange(len(images)), exits]
    runner = compile_runner(model, policy=policy, active=active)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(batch_size))
    shuffled = images[order]
    cuts = torch.tensor(sizes).cumsum(0).clamp(max=len(images)).tolist() if sizes else []
    batches = list(torch.tensor_split(shuffled, cuts))
    for said in (runner(shuffled), join(list(runner.stream(batches, batch_size=batch_size)))):
        assert torch.equal(said.exit, exits[order])
        torch.testing.assert_close(said.logits, answers[order], rtol=1e-4, atol=1e-5)
