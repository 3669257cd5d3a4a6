"""The one training loop, and one file per recipe."""

from importlib import import_module

from offramp.training.recipe import RECIPES, Objective, Recipe, Stage, StageSettings, Step

# Importing a file registers its recipe.
for _file in (
    "assembled",
    "berxit",
    "boosted",
    "branchynet",
    "classifier_wise",
    "copycat",
    "curriculum",
    "deebert",
    "dynamicvit",
    "end_to_end",
    "evit",
    "evo_levit",
    "evo_vit",
    "finetune",
    "frozen",
    "gradient_equilibrium",
    "jei_dnn",
    "joint",
    "layer_wise",
    "lgvit",
    "mixed",
    "msdnet",
    "pabee",
    "sdn",
    "self_distillation",
    "ztw",
):
    import_module(f"offramp.training.recipes.{_file}")

__all__ = [
    "RECIPES",
    "Objective",
    "Recipe",
    "Stage",
    "StageSettings",
    "Step",
]
