"""What every registered policy must do; a new policy gets all of this by being registered."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import OfframpError
from offramp.policies import POLICIES, Policy, policy_from_config

EXITS, CLASSES = 5, 4


class Step(nn.Module):
    """A policy's step as a module, for export."""

    def __init__(self, policy: Policy, k: int) -> None:
        super().__init__()
        self.policy, self.k = policy, k

    def forward(
        self, logits: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        return self.policy.step(self.k, SimpleNamespace(logits=logits), memory)


def members() -> list[Policy]:
    families = (POLICIES.get(name) for name in POLICIES.names())
    return [policy for family in families for policy in family.candidates(EXITS)[::5]]


@pytest.mark.parametrize("policy", members(), ids=repr)
def test_config_survives_json(policy: Policy) -> None:
    again = policy_from_config(json.loads(json.dumps(policy.to_config(), allow_nan=False)))
    assert again == policy
    assert hash(again) == hash(policy)


@pytest.mark.parametrize("policy", members(), ids=repr)
def test_shapes_and_types(policy: Policy) -> None:
    for batch in (0, 1, 7):
        memory = policy.start(batch, ids=torch.arange(batch))
        for k in range(EXITS):
            outputs = SimpleNamespace(logits=torch.randn(batch, CLASSES))
            stop, answer, memory = policy.step(k, outputs, memory)
            assert stop.shape == (batch,)
            assert stop.dtype == torch.bool
            assert answer.shape == (batch, CLASSES)
            assert all(len(part) == batch for part in memory)


@pytest.mark.parametrize("policy", members(), ids=repr)
def test_step_exports_with_any_batch_size(policy: Policy) -> None:
    memory = policy.start(3)
    logits = torch.randn(3, CLASSES)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = ({0: batch}, tuple({0: batch} for _ in memory))
    step = Step(policy, 1)
    program = torch.export.export(step, (logits, memory), dynamic_shapes=shapes).module()
    other = torch.randn(11, CLASSES)
    expected, found = step(other, policy.start(11)), program(other, policy.start(11))
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])


@pytest.mark.parametrize("name", POLICIES.names())
def test_candidates_span_from_early_to_never(name: str) -> None:
    def leavers(policy: Policy) -> int:
        generator = torch.Generator().manual_seed(0)
        memory, left = policy.start(200), torch.zeros(200, dtype=torch.bool)
        for k in range(EXITS - 1):
            outputs = SimpleNamespace(logits=torch.randn(200, CLASSES, generator=generator))
            stop, _, memory = policy.step(k, outputs, memory)
            left |= stop
        return int(left.sum())

    counts = [leavers(policy) for policy in POLICIES.get(name).candidates(EXITS)]
    assert counts[0] > 0
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("name", POLICIES.names())
def test_described_in_one_line(name: str) -> None:
    assert len(POLICIES.describe(name)) > 20


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thresholds": [0.5]}, "'name' is missing"),
        ({"name": "confidense", "thresholds": [0.5]}, "did you mean 'confidence'"),
        ({"name": "confidence", "thresholds": [0.5], "tau": 1}, "tau"),
        ({"name": "confidence"}, "thresholds"),
        ({"name": "confidence", "thresholds": ["high"]}, "thresholds"),
        ({"name": "confidence", "thresholds": []}, "thresholds"),
        ({"name": "confidence", "thresholds": [float("nan")]}, "thresholds"),
        ({"name": "confidence", "thresholds": [0.5], "temperatures": [1, 1]}, "2 temperatures"),
        ({"name": "confidence", "thresholds": [0.5], "temperatures": [0]}, "above 0"),
        ({"name": "patience", "patience": 0}, "patience = 0"),
        ({"name": "patience", "patience": 1.5}, "patience = 1.5"),
    ],
)
def test_bad_configs_say_what_is_wrong(config: dict[str, object], message: str) -> None:
    with pytest.raises(OfframpError, match=message):
        policy_from_config(config)
