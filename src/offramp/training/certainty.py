"""Exits that learn to say how sure they are (BERxiT's learning to exit).

Xin et al., "BERxiT: Early Exiting for BERT", EACL 2021.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from offramp.tasks import Task


def certainty_loss(task: Task, said: Sequence[NamedTuple], targets: Tensor) -> Tensor | None:
    """Σ over exits of the squared error between their ``certainty`` (B,) and how right they are.

    A class is right (1) or wrong (0), a number 1 − |tanh(ŷ − y)|; the answers themselves get no
    gradient from it. BERxiT learns one minus that, the chance of an error, with weight 1.

    Args:
        task: says how right an answer is.
        said: outputs of every exit; those without ``certainty`` are passed over.
        targets: of a `Step`.

    Returns:
        The loss, or None where no exit has a certainty to learn.
    """
    losses = [
        F.mse_loss(certainty.float().reshape(-1), task.rightness(outputs[0].detach(), targets))
        for outputs in said
        if (certainty := getattr(outputs, "certainty", None)) is not None
    ]
    return torch.stack(losses).sum() if losses else None
