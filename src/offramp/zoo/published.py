"""Published ImageNet accuracies by model name: ``published.json``, each with its source."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Published(NamedTuple):
    """One published figure."""

    accuracy: float
    """Top-1 in percent."""
    source: str
    """Who published it."""
    weights: str
    """``model.tag``."""


class Row(BaseModel):
    """A line of the file: weights (``model.tag``), the input they were tested at, the figure."""

    model_config = ConfigDict(extra="forbid")

    model: str
    tag: str
    image_size: int
    top1: float
    source: str


class Table(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    task: str
    sources: dict[str, str]
    models: list[Row]


@cache
def table() -> Table:
    text = files("offramp.zoo").joinpath("published.json").read_text(encoding="utf-8")
    return Table.model_validate_json(text)


def published(name: str, image_size: tuple[int, int]) -> Published | None:
    """What was published about a model at this input size, or None.

    Args:
        name: timm name, with or without the tag of its weights; without one, the figure listed
            first is taken.
    """
    model, _, tag = name.partition(".")
    for row in table().models:
        square = (row.image_size, row.image_size)
        if row.model == model and tag in ("", row.tag) and image_size == square:
            return Published(row.top1, table().sources[row.source], f"{row.model}.{row.tag}")
    return None
