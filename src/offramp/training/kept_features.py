"""Features of a frozen backbone that several stages share."""

import weakref
from collections.abc import Callable
from pathlib import Path

from offramp.model import MultiExitModel
from offramp.training.every_image import EveryImage
from offramp.training.feature_cache import FeatureCache
from offramp.training.features import FrozenFeatures
from offramp.training.recipes.frozen import HeadsCrossEntropy

MakeCache = Callable[[Path], FeatureCache | None]


class KeptFeatures(FrozenFeatures):
    """Features that the first stage computes and the others find; nothing between them may train
    the backbone. Whatever stops a run, its files go with this object."""

    def __init__(self, model: MultiExitModel, cache: FeatureCache | None) -> None:
        super().__init__(model, cache)
        if cache is not None:
            weakref.finalize(self, cache.clear)

    def prepare(self, images: EveryImage) -> None:
        if self.cache is not None and not self.cache.rows:
            super().prepare(images)


class Shelf:
    """Where the stages of a run find their features.

    Args:
        make: a run's folder → its cache.
    """

    def __init__(self, make: MakeCache) -> None:
        self.make = make
        self.kept: KeptFeatures | None = None

    def features(self, model: MultiExitModel, run: Path) -> KeptFeatures:
        if self.kept is None or self.kept.model is not model:
            self.kept = KeptFeatures(model, self.make(run))
        return self.kept


class HeadsOnKeptFeatures(HeadsCrossEntropy):
    """A loss over the heads, on features that other stages use as well.

    Args:
        last: no stage after this one needs them.
    """

    def __init__(self, model: MultiExitModel, features: KeptFeatures, *, last: bool) -> None:
        super().__init__(model)
        self.features, self.last = features, last

    def close(self) -> None:
        if self.last and self.features.cache is not None:
            self.features.cache.clear()
