"""``end_to_end``: everything at once, the final exit counting twice.

The joint regime of Bakhtiarnia, Zhang and Iosifidis, "Multi-Exit Vision Transformer for Dynamic
Inference", BMVC 2021, arXiv 2106.15183.
"""

from offramp.training.recipe import StageSettings, register_recipe, settings
from offramp.training.recipes.joint import Joint, Weighting


@register_recipe("end_to_end")
class EndToEnd(Joint):
    """Σ_k w_k L_k with w ∝ (1, …, 1, 2)."""

    weighting: Weighting = "final-heavy"
    joint: StageSettings = settings(optimizer="adam", lr=1e-4)
