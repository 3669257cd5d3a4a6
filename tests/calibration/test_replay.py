"""The central invariant: fed the same outputs, live and replay decide the same."""

from functools import cache
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import made_logits, made_meta, made_records, made_signals
from torch import Tensor

from offramp.calibration import Records, replay
from offramp.errors import OfframpError
from offramp.policies import (
    POLICIES,
    Confidence,
    Memory,
    Patience,
    Policy,
    Thresholded,
    ThresholdPolicy,
)
from offramp.policies.learned import SignalPolicy

COUNT, EXITS, CLASSES = 40, 5, 4
CLASSIFYING = [n for n in POLICIES.names() if "classification" in POLICIES.get(n).tasks]


class MeanLogits(Policy):
    """A policy that answers with the mean of what was said so far: not a function of one scalar."""

    name: ClassVar[str] = "mean-logits"

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        return torch.zeros(batch, CLASSES), torch.zeros(batch, 1)

    def step(
        self, k: int, outputs: SimpleNamespace, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        total, seen = memory[0] + outputs.logits, memory[1] + 1
        answer = total / seen
        return answer.softmax(-1).amax(-1) > 0.8, answer, (total, seen)

    def parameters(self) -> dict[str, object]:
        return {}

    @classmethod
    def candidates(cls, num_exits: int) -> list["MeanLogits"]:
        return [cls()]


def live(
    policy: Policy, logits: Tensor, ids: Tensor, active: tuple[int, ...], sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """Run batches of the given sizes with compaction, as a runner does: exits, answers."""
    exits, answers = torch.full((len(logits),), -1), torch.zeros(len(logits), logits.shape[-1])
    signals = made_signals(logits)
    last = logits.shape[1] - 1
    start = 0
    for size in [*sizes, len(logits)]:
        rows = torch.arange(start, min(start + size, len(logits)))
        start += len(rows)
        memory = policy.start(len(rows), ids=ids[rows])
        for k in (*active, last):
            heard = {name: values[rows, k] for name, values in signals.items()}
            outputs = SimpleNamespace(logits=logits[rows, k], **heard)
            if k == last:
                exits[rows], answers[rows] = k, policy.final_answer(k, outputs, memory)
                break
            stop, answer, memory = policy.step(k, outputs, memory)
            exits[rows[stop]], answers[rows[stop]] = k, answer[stop]
            stay = (~stop).nonzero()[:, 0]
            rows = rows.index_select(0, stay)
            memory = tuple(part.index_select(0, stay) for part in memory)
    return exits, answers


@cache
def fitted(family: type[Policy]) -> dict[str, object]:
    return family.fit(made_records(COUNT, EXITS, CLASSES))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    family = POLICIES.get(draw(st.sampled_from(CLASSIFYING)))
    if not issubclass(family, Thresholded):
        return draw(st.sampled_from(family.candidates(EXITS, **fitted(family))))
    low, high = max(family.always, -1.5), family.never
    shares = draw(st.lists(st.floats(0, 1), min_size=EXITS, max_size=EXITS))
    thresholds = [low + (high - low) * share for share in shares]
    if not issubclass(family, ThresholdPolicy) or issubclass(family, SignalPolicy):
        return family(thresholds, **fitted(family))
    hot = draw(st.booleans())
    scales = draw(st.lists(st.floats(0.3, 3), min_size=EXITS, max_size=EXITS)) if hot else None
    return family(thresholds, scales)


@settings(max_examples=150, deadline=None)
@given(
    policy=st.one_of(policies(), st.just(MeanLogits())),
    seed=st.integers(0, 50),
    active=st.sets(st.integers(0, EXITS - 2)),
    sizes=st.lists(st.integers(1, 17), max_size=6),
)
def test_live_and_compacted_equals_replay(
    policy: Policy, seed: int, active: set[int], sizes: list[int]
) -> None:
    logits, labels = made_logits(COUNT, EXITS, CLASSES, seed)
    records = Records.from_logits(
        logits, labels, meta=made_meta(EXITS), signals=made_signals(logits)
    )
    decisions = replay(policy, records, sorted(active))
    exits, answers = live(policy, logits, records.ids, tuple(sorted(active)), sizes)
    assert torch.equal(decisions.exit, exits)
    assert torch.equal(decisions.prediction, answers.argmax(-1))


@settings(max_examples=30, deadline=None)
@given(policy=policies(), seed=st.integers(0, 50))
def test_nobody_depends_on_the_rest_of_the_batch(policy: Policy, seed: int) -> None:
    logits, labels = made_logits(COUNT, EXITS, CLASSES, seed)
    together, _ = live(policy, logits, torch.arange(COUNT), (0, 1, 2, 3), [])
    alone, _ = live(policy, logits, torch.arange(COUNT), (0, 1, 2, 3), [1] * COUNT)
    assert torch.equal(together, alone)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))
    records = Records.from_logits(
        logits[order], labels[order], meta=made_meta(EXITS), signals=made_signals(logits[order])
    )
    assert torch.equal(replay(policy, records).exit, together[order])


def test_limits_are_the_full_model_and_the_first_exit() -> None:
    logits, labels = made_logits(COUNT, EXITS, CLASSES)
    records = Records.from_logits(logits, labels, meta=made_meta(EXITS))
    for never in (Confidence.shared(1.0, EXITS), Patience(EXITS)):
        assert replay(never, records).exit.tolist() == [EXITS - 1] * COUNT
        assert torch.equal(replay(never, records).prediction, records.prediction[:, -1])
    first = replay(Confidence.shared(0.0, EXITS), records)
    assert first.exit.tolist() == [0] * COUNT
    assert first.exit_share == (1.0, 0.0, 0.0, 0.0, 0.0)
    none = replay(Confidence.shared(0.0, EXITS), records, active=())
    assert none.exit_share[-1] == 1.0


def test_unknown_active_exit() -> None:
    logits, labels = made_logits(COUNT, EXITS, CLASSES)
    records = Records.from_logits(logits, labels, meta=made_meta(EXITS))
    with pytest.raises(OfframpError, match="active exit 4 does not exist"):
        replay(Patience(1), records, active=[4])
    with pytest.raises(OfframpError, match="2 thresholds"):
        replay(Confidence([0.5, 0.5]), records)
