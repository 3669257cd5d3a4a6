"""What every policy family is tested on: exits that say something, and members of the family."""

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from offramp.calibration import Records, RecordsMeta
from offramp.policies import POLICIES, Policy

EXITS, CLASSES = 5, 4


def say(logits: Tensor) -> SimpleNamespace:
    """What an exit with logits (B, C) says, with every signal that a policy may need."""
    certainty, gate = torch.sigmoid(logits[:, 0]), logits.amax(dim=-1) - 3
    return SimpleNamespace(logits=logits, certainty=certainty, gate=gate)


def meta(exits: int = EXITS, task: str = "classification") -> RecordsMeta:
    return RecordsMeta(
        fingerprint="0123456789abcdef",
        dataset="made",
        split="calibration",
        exit_names=[f"exit {k}" for k in range(exits)],
        positions=list(range(1, exits)),
        blocks=exits,
        standalone=[True] * exits,
        task=task,
    )


@cache
def records(count: int = 200, exits: int = EXITS, classes: int = CLASSES) -> Records:
    """Noisy exits that are right more often with depth."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 1.5 * torch.randn(count, exits, classes, generator=generator)
    depth = 0.5 + 2.5 * torch.arange(exits) / exits
    logits[torch.arange(count), :, labels] += depth
    signals = {"certainty": torch.sigmoid(logits[..., 0]), "gate": logits.amax(dim=-1) - 3}
    return Records.from_logits(logits, labels, meta=meta(exits), signals=signals)


def family_members(name: str) -> list[Policy]:
    """Candidates of a family, fitted where it needs it."""
    family = POLICIES.get(name)
    return list(family.candidates(EXITS, **family.fit(records())))
