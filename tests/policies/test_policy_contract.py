"""What every registered policy must do; a new policy gets all of this by being registered."""

import inspect
import json
from zlib import crc32

import pytest
import torch
from policy_family import CLASSES, EXITS, family_members, records, say
from torch import Tensor, nn

from offramp.calibration import replay
from offramp.errors import OfframpError
from offramp.policies import POLICIES, Policy, policy_from_config


class Step(nn.Module):
    """A policy's step as a module, for export."""

    def __init__(self, policy: Policy, k: int) -> None:
        super().__init__()
        self.policy, self.k = policy, k

    def forward(
        self, logits: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        return self.policy.step(self.k, say(logits), memory)


def members() -> list[Policy]:
    return [policy for name in POLICIES.names() for policy in family_members(name)[::10]]


def short(policy: Policy) -> str:
    return f"{policy.name} {crc32(repr(policy.to_config()).encode()) % 10_000}"  # in any process


@pytest.mark.parametrize("policy", members(), ids=short)
def test_config_survives_json(policy: Policy) -> None:
    again = policy_from_config(json.loads(json.dumps(policy.to_config(), allow_nan=False)))
    assert again == policy
    assert hash(again) == hash(policy)


@pytest.mark.parametrize("policy", members(), ids=short)
def test_shapes_and_types(policy: Policy) -> None:
    for batch in (0, 1, 7):
        memory = policy.start(batch, ids=torch.arange(batch))
        for k in range(EXITS):
            outputs = say(torch.randn(batch, CLASSES))
            before = [(part.shape, part.dtype) for part in memory]
            final = policy.final_answer(k, outputs, memory)
            stop, answer, memory, score = policy.scored_step(k, outputs, memory)
            assert stop.shape == score.shape == (batch,)
            assert stop.dtype == torch.bool
            assert answer.shape == final.shape == (batch, CLASSES)
            assert answer.dtype == final.dtype == torch.float32  # a runner joins them
            assert [(part.shape, part.dtype) for part in memory] == before  # as graphs need it
            assert all(len(part) == batch for part in memory)


@pytest.mark.parametrize("policy", members(), ids=short)
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


@pytest.mark.parametrize("policy", members(), ids=short)
def test_memory_lives_on_the_device_asked_for(policy: Policy) -> None:
    memory = policy.start(3, device=torch.device("meta"))
    assert all(part.device.type == "meta" for part in memory)


@pytest.mark.parametrize("name", POLICIES.names())
def test_candidates_span_from_early_to_never(name: str) -> None:
    def leavers(policy: Policy) -> int:
        generator = torch.Generator().manual_seed(0)
        memory, left = policy.start(200), torch.zeros(200, dtype=torch.bool)
        for k in range(EXITS - 1):
            outputs = say(torch.randn(200, CLASSES, generator=generator))
            stop, _, memory = policy.step(k, outputs, memory)
            left |= stop
        return int(left.sum())

    counts = [leavers(policy) for policy in family_members(name)]
    assert counts[0] == max(counts) > 0
    assert counts[-1] == 0


CLASSIFYING = [n for n in POLICIES.names() if "classification" in POLICIES.get(n).tasks]


@pytest.mark.parametrize("name", CLASSIFYING)
def test_no_active_exit_is_the_full_model(name: str) -> None:
    for policy in family_members(name)[::10]:
        decisions = replay(policy, records(), active=())
        assert decisions.exit.tolist() == [EXITS - 1] * len(records())
        assert torch.equal(decisions.prediction, records().prediction[:, -1])


@pytest.mark.parametrize("name", sorted(set(CLASSIFYING) - {"best_of", "boosted"}))
def test_whoever_never_stops_is_the_full_model(name: str) -> None:
    # The card's check 14; those two answer with all that ran by definition.
    decisions = replay(family_members(name)[-1], records())
    assert decisions.exit.tolist() == [EXITS - 1] * len(records())
    assert torch.equal(decisions.prediction, records().prediction[:, -1])


@pytest.mark.parametrize("name", CLASSIFYING)
def test_the_quickest_member_stops_at_once(name: str) -> None:
    quickest = family_members(name)[0]
    first = 1 if name == "patience" else 0  # it agrees with nobody before
    exits = replay(quickest, records()).exit
    assert exits.min() == first
    if hasattr(quickest, "thresholds"):
        assert exits.max() == first  # the card's check 14: T = -inf


@pytest.mark.parametrize("name", CLASSIFYING)
def test_what_is_fitted_is_what_the_constructor_takes(name: str) -> None:
    family = POLICIES.get(name)
    assert set(family.fit(records())) <= set(inspect.signature(family).parameters)


@pytest.mark.parametrize("name", POLICIES.names())
def test_described_in_one_line(name: str) -> None:
    assert len(POLICIES.describe(name)) > 20


def ensemble(**changes: object) -> dict[str, object]:
    sound = {
        "name": "ztw_geometric",
        "thresholds": [0.5, 0.5, 0.5],
        "weights": [[1], [1, 1]],
        "offsets": [[0, 0], [0, 0]],
    }
    return sound | changes


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
        ({"name": "patience", "patience": 2, "counting": "layers"}, "counting = 'layers'"),
        ({"name": "pcee", "patience": 0}, "patience = 0"),
        ({"name": "pcee", "entropy": -1}, "entropy = -1, but it must be a number ≥ 0"),
        ({"name": "pcee", "entropy": "low"}, "entropy = 'low'"),
        ({"name": "learned", "thresholds": [0.5], "temperatures": [2]}, "no temperatures"),
        ({"name": "budgeted", "thresholds": ["high"]}, "thresholds"),
        ({"name": "best_of", "thresholds": [0.5]}, "num_classes"),
        ({"name": "voting", "thresholds": [0.5], "num_classes": 0}, "num_classes = 0"),
        ({"name": "boosted", "thresholds": [0.5], "num_classes": 3, "keep": -1}, "keep = -1"),
        ({"name": "ztw_geometric", "thresholds": [0.5]}, "weights"),
        (ensemble(weights=[[1], [1, 1], [1, 1, 1], [1]]), "4 rows of weights for 3 exits"),
        (ensemble(weights=[[1], [1]]), r"weights\[1\] must be 2 numbers above 0"),
        (ensemble(weights=[[1], [1, 0]]), r"weights\[1\] must be 2 numbers above 0"),
        (ensemble(weights=[[1], "ab"]), "weights must be rows of numbers"),
        (ensemble(offsets=[[0, 0]]), "offsets must be 2 rows"),
        (ensemble(offsets=[[0, 0], [0]]), "offsets must be 2 rows"),
        (ensemble(offsets=[[0, 0], [float("inf"), 0]]), "offsets must be rows of finite numbers"),
        (ensemble(name="ztw_arithmetic", offsets=[[0, 0], [0, -1]]), "offsets must be 0 or more"),
    ],
)
def test_bad_configs_say_what_is_wrong(config: dict[str, object], message: str) -> None:
    with pytest.raises(OfframpError, match=message):
        policy_from_config(config)
