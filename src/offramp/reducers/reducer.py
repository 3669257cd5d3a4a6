"""Naming, building and describing reducers."""

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from offramp.chains.chain import Chain
from offramp.chains.reduced import ReducedChain, Reducer, check_blocks
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError
from offramp.registry import Registry

REDUCERS: Registry[type[Reducer]] = Registry("reducer")
register_reducer = REDUCERS.register


class ReducerSpec(BaseModel):
    """A reducer and its options; ``{name: tome, r: 8}`` is short for options under their key."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="registered reducer")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the reducer")

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, dict):
            return given
        options = {key: value for key, value in given.items() if key not in cls.model_fields}
        named = {key: value for key, value in given.items() if key in cls.model_fields}
        return {**named, "options": {**named.get("options", {}), **options}}

    def at(self, **options: Any) -> "ReducerSpec":
        """The same reducer with these options changed: another strength of it."""
        return ReducerSpec(name=self.name, options={**self.options, **options})

    @property
    def slug(self) -> str:
        """A name for files: ``tome-r-8``."""
        words = [self.name, *(f"{key} {value}" for key, value in sorted(self.options.items()))]
        return re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")

    @property
    def as_yaml(self) -> str:
        """How a recipe or the command line says it: ``{"name": "tome", "r": 8}``."""
        return json.dumps({"name": self.name, **self.options})

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key} = {value}" for key, value in self.options.items())])


def reduced(links: Chain, spec: ReducerSpec | None) -> Chain:
    """The chain under a reducer, or the chain itself where there is none.

    Raises:
        OfframpError: for an unknown reducer or option, or a backbone it does not work on.
    """
    if spec is None:
        return links
    check_blocks(links)
    assert isinstance(links, ViTChain)
    return ReducedChain(links, build_reducer(spec.name, links, spec.options))


def build_reducer(name: str, links: ViTChain, options: dict[str, Any] | None = None) -> Reducer:
    """Build the registered reducer ``name``, checking its options by name."""
    kind = REDUCERS.get(name)
    known = [
        parameter.name
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for option in options or {}:
        if option not in known:
            accepted = ", ".join(known) or "none"
            raise OfframpError(f"reducer {name!r} has no option {option!r} (it takes: {accepted})")
    return kind(links, **(options or {}))


def per_block(given: Any, depth: int, what: str) -> list[Any]:
    """One value for all blocks, or a list with at most one each, padded with zeros."""
    if not isinstance(given, list | tuple):
        return [given] * depth
    if len(given) > depth:
        raise OfframpError(f"{what} has {len(given)} entries, but there are {depth} blocks")
    return [*given, *[0] * (depth - len(given))]


def share(name: str, value: float) -> float:
    """A keep ratio, checked to lie in (0, 1]."""
    if not 0 < value <= 1:
        raise OfframpError(f"{name} = {value}, but a share of tokens lies in 0…1, above 0")
    return float(value)


def block_numbers(name: str, numbers: Any, depth: int) -> list[int]:
    """1-based blocks of an option → 0-based, ascending and checked."""
    for number in numbers:
        if not 1 <= number <= depth:
            raise OfframpError(f"{name}: {number} is no block (use 1…{depth})")
    return sorted({int(number) - 1 for number in numbers})


def thirds(depth: int) -> list[int]:
    """1-based blocks after each quarter of the depth: 4, 7, 10 of twelve."""
    return sorted({1 + max(1, round(depth * part / 4)) for part in (1, 2, 3)} - {depth + 1})
