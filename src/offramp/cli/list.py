"""``offramp list``: what there is, read from the registries."""

import inspect
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from offramp.cli.terminal import AsJson, emit, show, table

Entries = list[tuple[str, str]]


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    exits = "exits"
    policies = "policies"
    recipes = "recipes"
    reducers = "reducers"
    datasets = "datasets"
    engines = "engines"


# where each kind's registries live
REGISTRIES = {
    Kind.exits: ("offramp.exits", ("EXITS", "LAYOUTS")),
    Kind.policies: ("offramp.policies", ("POLICIES",)),
    Kind.recipes: ("offramp.training", ("RECIPES",)),
    Kind.reducers: ("offramp.reducers", ("REDUCERS",)),
    Kind.datasets: ("offramp.data", ("DATASETS",)),
    Kind.engines: ("offramp.runtime.engines", ("ENGINES",)),
}


def list_entries(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help=" | ".join(k.value for k in Kind))],
    pattern: Annotated[
        str | None, typer.Argument(help="Only names that match, with * and ?: 'deit*'")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what recipes and commands may name.

    Example: [bold]offramp list models 'deit*'[/]
    """
    found = models() if kind is Kind.models else registered(kind)
    if pattern is not None:
        wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        found = [entry for entry in found if fnmatchcase(entry[0], wanted)]
    if as_json:
        emit([{"name": name, "summary": summary} for name, summary in found])
    elif found:
        show(
            table(
                f"{len(found)} {kind.value}",
                ["name", "family<" if kind is Kind.models else "what it is<"],
                found,
            )
        )
    else:
        show(f"no {kind.value} match {pattern!r}" if pattern else f"no {kind.value} yet")


def registered(kind: Kind) -> Entries:
    """Names and first docstring lines; nothing where the room is not built yet."""
    room, names = REGISTRIES[kind]
    if find_spec(room) is None:
        return []
    module = import_module(room)
    registries = [getattr(module, name) for name in names]
    return [
        (name, registry.describe(name).replace("``", ""))
        for registry in registries
        for name in registry.names()
    ]


def models() -> Entries:
    """timm's models whose class a registered backbone family recognises.

    Building 1,300 models to ask about each would take minutes, so families are shown an empty
    instance of every class that a timm module builds from.
    """
    from offramp import vision_cure
    from offramp.chains import FAMILIES

    vision_cure.ensure()
    import timm

    found: Entries = []
    for file in timm.list_modules():
        classes = _classes(import_module(f"timm.models.{file}"))
        for name in FAMILIES.names():
            if any(FAMILIES.get(name).matches(kind.__new__(kind)) for kind in classes):
                found += [(model, name) for model in timm.list_models(module=file)]
                break
    return sorted(found)


def _classes(module: Any) -> list[Any]:
    from torch import nn

    members = vars(module).values()
    return [kind for kind in members if inspect.isclass(kind) and issubclass(kind, nn.Module)]
