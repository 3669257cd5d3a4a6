"""``ztw``: heads that build on one another, on a backbone that stays as it is.

Wołczyk et al., "Zero Time Waste: Recycling Predictions in Early Exit Neural Networks", NeurIPS
2021. The cascade is the heads' (exit ``ztw``); the ensembles are fitted on records by the policies
that use them.
"""

from offramp.training.recipe import StageSettings, register_recipe, settings
from offramp.training.recipes.frozen import Frozen


@register_recipe("ztw")
class ZTW(Frozen):
    """Heads alone, each reading the detached answer of the one before; ViT-B/16's numbers."""

    heads: StageSettings = settings(
        epochs=15, optimizer="adam", lr=5e-3, weight_decay=1e-4, sched="cosine", clip_grad=None
    )
