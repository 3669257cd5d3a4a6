"""The one training loop, and one file per recipe."""

from offramp.training.recipe import RECIPES, Objective, Recipe, Stage, StageSettings, Step
from offramp.training.recipes import finetune, frozen, joint, lgvit  # fills the registry

__all__ = [
    "RECIPES",
    "Objective",
    "Recipe",
    "Stage",
    "StageSettings",
    "Step",
    "finetune",
    "frozen",
    "joint",
    "lgvit",
]
