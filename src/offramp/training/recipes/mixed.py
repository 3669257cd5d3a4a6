"""``mixed``: the backbone first, then everything.

Kubaty et al., "How to Train Your Multi-Exit Model?", 2025, arXiv 2407.14320: of the disjoint, joint
and mixed regimes the one with the best final exit in most of its comparisons.
"""

from offramp.training.recipe import StageSettings, register_recipe, settings
from offramp.training.recipes.joint import Joint


@register_recipe("mixed")
class Mixed(Joint):
    """The plain backbone to its end, then backbone and exits together; the usual choice."""

    finetune: StageSettings = settings(epochs=10)
