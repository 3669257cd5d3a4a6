"""Real images of a run's data set, preprocessed for its model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from offramp.runs import RunFolder


def real_images(run: "RunFolder", split: str, count: int) -> "Tensor":
    """At most ``count`` images of a split, drawn without regard to order: (N, 3, H, W)."""
    from offramp.data import batches

    part = run.data.split(split).limited(count)
    preprocessing = run.model.preprocessing
    return next(batches(part, batch_size=len(part), preprocessing=preprocessing)).images
