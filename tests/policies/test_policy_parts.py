"""Every policy inside a segment: as a graph it decides what it decides eagerly."""

from functools import cache

import pytest
import torch
from policy_family import meta
from torch import Tensor

from offramp.calibration import Records, replay
from offramp.exits.gated import GatedExit
from offramp.model import MultiExitModel
from offramp.policies import PCEE, POLICIES, PathPolicy, Policy, Thresholded
from offramp.runtime.compiling import compile_runner
from offramp.runtime.exporting import trace
from offramp.runtime.parts import build_parts
from tiny import tiny_model

CLASSIFYING = [n for n in POLICIES.names() if "classification" in POLICIES.get(n).tasks]


@cache
def model() -> MultiExitModel:
    """Four blocks, three exits that give every signal, spread-out confidences."""
    exits = [{"after": k, "head": "linear", "options": {"lte": True}} for k in (1, 2, 3)]
    made = tiny_model(exits)
    with torch.no_grad():
        for parameter in made.exits.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
        made.backbone.head.weight.normal_(std=0.5)
    for k, head in enumerate(made.heads):
        made.exits[k] = GatedExit(head).eval()
    return made


@cache
def images() -> Tensor:
    return torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@cache
def recorded() -> Records:
    with torch.no_grad():
        said = model()(images())
    logits = torch.stack([outputs.logits for outputs in said], dim=1)
    silent = torch.full((len(images()),), torch.nan)
    signals = {
        name: torch.stack([getattr(outputs, name, silent) for outputs in said], dim=1)
        for name in ("certainty", "gate")
    }
    labels = logits.log_softmax(-1).sum(dim=1).argmax(dim=-1)  # every exit has a part in it
    return Records.from_logits(logits, labels, meta=meta(4), signals=signals)


def middling(name: str) -> Policy:
    """A member that lets some samples go at most exits, no score near a threshold."""
    family = POLICIES.get(name)
    if family is PCEE:
        return PCEE(1, recorded().entropy[:, :3].median().item() + 1e-4)
    if not issubclass(family, Thresholded):
        return family.candidates(4, **family.fit(recorded()))[0]
    fitted = family.fit(recorded())
    reader = family.shared(family.never, 4, **fitted)
    memory, thresholds = reader.start(len(images())), []
    for k in range(3):
        outputs = recorded().outputs(k, slice(None))
        _, _, memory, score = reader.scored_step(k, outputs, memory)
        ordered = score.sort(descending=True).values
        thresholds.append(float(ordered[7] + ordered[8]) / 2)
    return family([*thresholds, family.never], **fitted)


LIKE_CONFIDENCE = {"entropy", "normalised_entropy", "margin", "budgeted"}


@pytest.mark.parametrize("name", sorted(set(CLASSIFYING) - LIKE_CONFIDENCE))
def test_a_segment_exports_with_its_decision(name: str) -> None:
    policy = middling(name)
    parts = build_parts(model(), (0, 1, 2), policy)
    memory = policy.start(len(images()))
    with torch.no_grad():
        flow: tuple[Tensor, ...] = (images(), *memory)
        for part in parts:
            wanted = part(*flow)
            if part is parts[1] or (part.last and isinstance(policy, PathPolicy)):
                found = trace(part).module()(*flow)
                for one, other in zip(wanted, found, strict=True):
                    assert one.dtype == other.dtype
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            flow = wanted[: len(part.layout.flow)]


@pytest.mark.parametrize("name", CLASSIFYING)
@pytest.mark.parametrize("active", [(0, 1, 2), (1,)])
def test_the_runner_does_what_replay_says(name: str, active: tuple[int, ...]) -> None:
    policy = middling(name)
    said = compile_runner(model(), policy=policy, active=active)(images())
    decisions = replay(policy, recorded(), active)
    assert torch.equal(said.exit, decisions.exit)
    assert torch.equal(said.labels, decisions.prediction)
    if len(active) == 3:
        assert len(decisions.exit.unique()) > 1
