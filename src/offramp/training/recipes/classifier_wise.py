"""``classifier_wise``: plug-and-play exits on a finished backbone.

The disjoint regime of Bakhtiarnia, Zhang and Iosifidis, "Multi-Exit Vision Transformer for Dynamic
Inference", BMVC 2021, arXiv 2106.15183. The paper lowers the learning rate when validation accuracy
stops rising and ends early; here the stage's own schedule (`sched`, `epochs`) takes its place.
"""

from pydantic import Field

from offramp.training.recipe import StageSettings, register_recipe, settings
from offramp.training.recipes.frozen import Frozen


@register_recipe("classifier_wise")
class ClassifierWise(Frozen):
    """Every head on its own over cached features: none can touch another, or the final exit.

    One stage trains them side by side: without a common gradient norm to clip, the sum of their
    losses moves each as it would move alone.
    """

    heads: StageSettings = settings(
        epochs=100, optimizer="adam", lr=1e-4, sched="cosine", clip_grad=None
    )
    cache_gb: float | None = Field(
        default=8.0, gt=0, description="size limit of the feature cache on disk; off: null"
    )
