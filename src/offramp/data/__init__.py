"""Data sets by name, transforms, and batches that are a pure function of (seed, epoch, index)."""

from importlib import import_module

from offramp.data.augment import Augment
from offramp.data.images import read_image
from offramp.data.loader import Batch, Batches, batches
from offramp.data.mixing import Mixed, mix
from offramp.data.registry import DATASETS, register_dataset
from offramp.data.source import SPLITS, DataSource, Split, open_dataset
from offramp.data.transforms import eval_transform

# Importing a file registers its data sets.
for _file in (
    "count_blobs",
    "crowd_counting",
    "digits",
    "digits_grid",
    "imagefolder",
    "parquet",
    "torchvision_sets",
):
    import_module(f"offramp.data.{_file}")


__all__ = [
    "DATASETS",
    "SPLITS",
    "Augment",
    "Batch",
    "Batches",
    "DataSource",
    "Mixed",
    "Split",
    "batches",
    "eval_transform",
    "mix",
    "open_dataset",
    "read_image",
    "register_dataset",
]
