"""Data sets by name."""

from collections.abc import Callable
from typing import Any

from offramp.registry import Registry

# An entry takes a `Request` and the data set's own keyword options, and returns a `DataSource`.
DATASETS: Registry[Callable[..., Any]] = Registry("data set")
register_dataset = DATASETS.register
