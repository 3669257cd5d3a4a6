"""Samples ordered by difficulty, for curricula.

Hacohen and Weinshall, "On The Power of Curriculum Learning in Training Deep Networks", ICML 2019.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.data import batches
from offramp.data.randomness import sample_keys, shuffled, uniforms
from offramp.files import read_tensors, write_tensors
from offramp.model import MultiExitModel
from offramp.training.recipe import Course, Order

Ranking = Literal["easy", "hard", "random"]


def pace(step: int, *, start: float, growth: float, every: int) -> float:
    """g(t) = min(1, g₀ · a^⌊t/T⌋): the share of the samples, easiest first, met at step t."""
    grown, enough = step // every, math.log(1 / start) / math.log(growth)
    return 1.0 if grown >= enough else start * growth**grown


def ranked(scores: Tensor, labels: Tensor, ranking: Ranking, *, balanced: bool) -> Tensor:
    """Positions (N,) in the order in which they become available.

    Args:
        scores: (N,), higher is harder.
        labels: (N,) classes.
        ranking: easiest first, hardest first, or without regard to scores (the control).
        balanced: take the classes in turn, so that every share holds each in proportion.
    """
    if ranking == "random":
        scores = torch.from_numpy(shuffled(np.arange(len(scores)), stream="difficulty")).double()
    order = torch.argsort(scores, descending=ranking == "hard", stable=True)
    if not balanced:
        return order
    place = torch.empty(len(order), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members)).double() + 0.5) / len(members)
    return order[torch.argsort(place[order], stable=True)]


def paced_order(course: Course, ranks: Tensor, *, start: float, growth: float, every: int) -> Order:
    """At step t samples are drawn, with replacement, from the first g(t)·N of ``ranks`` (N,)."""
    positions = ranks.numpy()

    def order(epoch: int) -> NDArray[np.int64]:
        met = []
        for step in range(epoch * course.steps, (epoch + 1) * course.steps):
            share = pace(step, start=start, growth=growth, every=every)
            known = max(1, round(share * len(positions)))
            keys = sample_keys(
                np.arange(course.batch), seed=course.seed, epoch=step, stream="curriculum"
            )
            met.append(positions[(uniforms(keys, 1)[:, 0] * known).astype(np.int64)])
        return np.concatenate(met)

    return order


def difficulty(course: Course, teacher: MultiExitModel, exits: Sequence[int]) -> Tensor:
    """Mean loss (N,) of the teacher's ``exits`` (indices) on every training sample.

    The teacher may be the model that is about to be trained, so its scores are kept in the run's
    folder and read again when the run is resumed.
    """
    context = course.context
    path = context.run / f"difficulty-{course.stage}.safetensors"
    if context.accelerator.is_main_process and (course.first or not path.is_file()):
        write_tensors(path, {"score": _losses(course, teacher, exits)})
    context.accelerator.wait_for_everyone()
    return read_tensors(path)["score"]


@torch.no_grad()
def _losses(course: Course, teacher: MultiExitModel, exits: Sequence[int]) -> Tensor:
    context = course.context
    teacher = teacher.to(context.device).eval()
    found = []
    for batch in batches(
        course.split,
        batch_size=256,
        preprocessing=teacher.preprocessing,
        workers=context.options.workers,
    ):
        labels = batch.labels.to(context.device)
        with context.accelerator.autocast():
            said = teacher(batch.images.to(context.device))
        losses = [teacher.task.losses(said[k][0], labels).cpu() for k in exits]
        found.append(torch.stack(losses).mean(dim=0))
    return torch.cat(found)
