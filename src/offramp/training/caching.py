"""Where a recipe keeps what a frozen backbone says: settings of all that train heads on it."""

from pathlib import Path

from pydantic import Field
from torch import distributed as dist

from offramp.training.feature_cache import FeatureCache
from offramp.training.recipe import Recipe
from offramp.training.shared_features import SharedFeatureCache


class Caching(Recipe):
    """A recipe with a feature cache."""

    cache_gb: float | None = Field(
        default=None,
        gt=0,
        description="size limit of the feature cache on disk; it needs images that do not change",
    )
    cache_folder: Path | None = Field(
        default=None,
        description="folder where features stay for other runs on the same backbone and images; "
        "when omitted they lie in the run's own and go with its training",
    )

    def cache(self, run: Path) -> FeatureCache | None:
        """A cache of this process."""
        if self.cache_gb is None:
            return None
        if self.cache_folder is not None:
            return SharedFeatureCache(self.cache_folder, self.cache_gb)
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return FeatureCache(run / f"features-{rank}", self.cache_gb)
