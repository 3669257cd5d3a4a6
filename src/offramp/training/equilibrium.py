"""Gradient equilibrium: every block learns from the mean of the exits above it, not their sum.

Li et al., "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from offramp.model import MultiExitModel


class _Scaled(torch.autograd.Function):
    """x forward, factor · gradient backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradients[0], None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` unchanged; its gradient is multiplied by ``factor``."""
    scaled: Tensor = _Scaled.apply(x, factor) if x.requires_grad else x
    return scaled


def balanced_answers(model: MultiExitModel, images: Tensor) -> list[NamedTuple]:
    """What every exit says, with gradients between the blocks in equilibrium.

    With exits i = 0 … K−1, the gradient that the output of segment i gets from segment i+1 is
    multiplied by K−i−1, the gradient of head i is added, and the sum is divided by K−i: the segment
    then gets the mean of the K−i gradients from the exits it serves. Heads, and what they carry to
    one another, learn as always. Forward this is ``model(images)``.
    """
    segments = model.segments()
    count = len(segments)
    inputs: tuple[Tensor, ...] = (images,)
    answers = []
    for i, segment in enumerate(segments):
        reached = segment.body(*inputs)
        width = model.chain.schema_after(segment.stop - 1).chain_width
        state = tuple(scale_gradient(x, 1 / (count - i)) for x in reached[:width])
        passed, outputs = segment.read(*state, *reached[width:])
        answers.append(outputs)
        state = tuple(scale_gradient(x, count - i - 1) for x in passed[:width])
        inputs = (*state, *passed[width:])
    return answers
