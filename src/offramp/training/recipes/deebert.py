"""``deebert``: the whole network first, then off-ramps on it as it stands.

Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", ACL 2020. Exits leave
by entropy (policy ``entropy``).
"""

from offramp.training.recipe import StageSettings, register_recipe, settings
from offramp.training.recipes.frozen import Frozen


@register_recipe("deebert")
class DeeBERT(Frozen):
    """Two stages: backbone with its classifier, then Σ_{i<n} CE_i over the heads alone."""

    finetune: StageSettings = settings(epochs=3, lr=2e-5)
    heads: StageSettings = settings(epochs=3, lr=2e-5)
