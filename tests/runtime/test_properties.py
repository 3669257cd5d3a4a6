"""For any thresholds, patience, exits and batch sizes: live, streamed and replayed are one."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.calibration import Records, RecordsMeta
from offramp.exits import Outputs
from offramp.model import MultiExitModel
from offramp.policies import POLICIES, PathPolicy, Patience, Policy
from offramp.policies.threshold import ThresholdPolicy
from offramp.runtime.compiling import compile_runner
from offramp.runtime.prediction import join

THRESHOLDS = sorted(
    name
    for name in POLICIES.names()
    if issubclass(POLICIES.get(name), ThresholdPolicy) and not POLICIES.get(name).needs
)
PATHS = sorted(
    name
    for name in POLICIES.names()
    if issubclass(POLICIES.get(name), PathPolicy) and not POLICIES.get(name).needs
)


def expected(policy: Policy, logits: Tensor, active: list[int]) -> tuple[Tensor, Tensor]:
    """Exit (N,) and answer (N, C) of every sample by the definition, on what the whole model said
    at once."""
    last = logits.shape[1] - 1
    memory = policy.start(len(logits))
    exits, answers = torch.full((len(logits),), last), torch.empty_like(logits[:, 0])
    for k in active:
        stop, answer, memory = policy.step(k, Outputs(logits[:, k]), memory)
        leaving = stop & (exits == last)
        answers = torch.where(leaving[:, None], answer, answers)
        exits = torch.where(leaving, k, exits)
    final = policy.final_answer(last, Outputs(logits[:, last]), memory)
    return exits, torch.where((exits == last)[:, None], final, answers)


def midway(name: str, ranks: list[int], logits: Tensor, active: list[int]) -> Policy:
    """Thresholds between neighbouring observed scores, so that rounding decides nothing."""
    family, exits = POLICIES.get(name), logits.shape[1]
    fitted = family.fit(recorded(logits))
    reader = family.shared(0.0, exits, **fitted)
    memory, thresholds = reader.start(len(logits)), [family.never] * exits
    for k in active:
        _, _, memory, score = reader.scored_step(k, Outputs(logits[:, k]), memory)
        score = score.sort().values
        thresholds[k] = float(score[ranks[k]] + score[ranks[k] + 1]) / 2
    return family(thresholds, **fitted)


def recorded(logits: Tensor) -> Records:
    """Records that take the full model for right."""
    exits = logits.shape[1]
    meta = RecordsMeta(
        fingerprint="0123456789abcdef",
        dataset="made",
        split="calibration",
        exit_names=[f"exit {k}" for k in range(exits)],
        positions=list(range(1, exits)),
        blocks=exits,
        standalone=[True] * exits,
    )
    return Records.from_logits(logits, logits[:, -1].argmax(-1), meta=meta)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([*THRESHOLDS, *PATHS, "patience"]),
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
    policy = Patience(patience) if name == "patience" else midway(name, ranks, logits, active)
    exits, answers = expected(policy, logits, active)
    runner = compile_runner(model, policy=policy, active=active)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(batch_size))
    shuffled = images[order]
    cuts = torch.tensor(sizes).cumsum(0).clamp(max=len(images)).tolist() if sizes else []
    batches = list(torch.tensor_split(shuffled, cuts))
    for said in (runner(shuffled), join(list(runner.stream(batches, batch_size=batch_size)))):
        assert torch.equal(said.exit, exits[order])
        torch.testing.assert_close(said.logits, answers[order], rtol=1e-4, atol=1e-5)
