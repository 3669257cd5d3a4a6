"""One pass over every image that a stage may show, before its first step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from offramp.data import Batch


@dataclass(frozen=True)
class EveryImage:
    """Batches of all images of training and validation, unaugmented and in order.

    Attributes:
        ids: of all samples, int64 (N,).
        begin: starts a pass over them.
        held_out: starts a pass over those of validation alone.
    """

    ids: Tensor
    begin: Callable[[], Iterator[Batch]]
    held_out: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.begin()
