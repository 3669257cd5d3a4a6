"""A small model that answers with one number, and data for it, for every suite."""

from typing import Any

import torch

import offramp
from families import enliven
from offramp.data import DataSource, open_dataset
from offramp.model import MultiExitModel
from offramp.tasks import Target

SMALL = {"patch_size": 6, "embed_dim": 24, "depth": 4, "num_heads": 3}


def regression_model(
    exits: Any = "linear", *, mean: float = 4.5, std: float = 3.0, depth: int = 4, seed: int = 0
) -> MultiExitModel:
    """By default with exits after blocks 1, 2 and 3 of 4; no two pictures look alike to it."""
    torch.manual_seed(seed)
    model = offramp.create(
        "vit_tiny_patch16_224",
        exits=exits,
        at=[1, 2, 3] if isinstance(exits, str) else None,
        image_size=24,
        backbone_args=SMALL | {"depth": depth},
        labels=["blobs"],
        task="regression",
        target=Target(mean=mean, std=std),
    )
    enliven(model)
    return model.eval()


def blobs(**sizes: int) -> DataSource:
    """A few pictures per split."""
    chosen = {"train": 64, "calibration": 96, "validation": 32, "test": 80} | sizes
    return open_dataset("count-blobs", options={"sizes": chosen})
