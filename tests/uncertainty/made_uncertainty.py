"""Answers without any model: from made exits, and from labels that are as likely as they say."""

import sys
from pathlib import Path

import torch

from offramp.calibration import Records
from offramp.policies import Confidence
from offramp.uncertainty import Answers, mixture_answers

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))
from made_records import made_records

EXITS, CLASSES = 4, 6
POLICY = Confidence.shared(0.6, EXITS)


def records(count: int = 2000, seed: int = 0, **changes: object) -> Records:
    return made_records(count, EXITS, CLASSES, seed=seed, **changes)


def made_answers(count: int = 2000, seed: int = 0) -> Answers:
    """What leaves made exits, some of it at every exit."""
    return mixture_answers(POLICY, records(count, seed))


def uniform_answers(count: int, seed: int = 0) -> Answers:
    """Labels drawn from the very probabilities; exits by a fair die."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    exits = torch.randint(EXITS, (count,), generator=generator)
    return Answers(logits, exits, labels, torch.arange(count), EXITS)
