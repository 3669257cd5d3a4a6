"""offramp.fit: train a model that is already in hand, without a recipe file."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offramp.data import DataSource, open_dataset
from offramp.model import MultiExitModel
from offramp.training import RECIPES, Recipe
from offramp.training.context import LoopOptions
from offramp.training.loop import Trainer
from offramp.training.run_config import validated


def fit(
    model: MultiExitModel,
    *,
    recipe: str | Recipe,
    data: str | DataSource,
    run: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    precision: str = "fp32",
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> MultiExitModel:
    """Train a model in place.

    Args:
        model: the model; trained in place and returned in eval mode, on the CPU.
        recipe: registered name (then ``options`` are its fields) or a recipe object.
        data: data set by name, or an opened one.
        run: folder for checkpoints and ``metrics.jsonl``; None keeps neither.
        resume: go on from the folder's checkpoint.
        seed: of data order, augmentation and dropout.
        precision: ``fp32`` or ``bf16``.
        device: ``auto`` or ``cpu``.
        progress: show progress bars.

    Raises:
        OfframpError: for an unknown recipe, data set or option.
    """
    if isinstance(recipe, str):
        chosen: Recipe = validated(RECIPES.get(recipe), options, "recipe.")
    elif options:
        raise TypeError("options go with a recipe's name, not with a recipe object")
    else:
        chosen = recipe
    source = open_dataset(data) if isinstance(data, str) else data
    loop = LoopOptions(seed=seed, precision=precision, device=device, progress=progress)
    with TemporaryDirectory() as temporary:
        folder = Path(run) if run is not None else Path(temporary)
        Trainer(model, chosen, source, folder, loop).train(resume=resume)
    return model.cpu().eval()
