"""``offramp list``: what there is, read from the registries."""

from enum import StrEnum
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from offramp.cli.list_models import FEW, Entries, list_models, models
from offramp.cli.terminal import AsJson, emit, show, table


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
    details: Annotated[
        bool | None,
        typer.Option(
            "--details/--names",
            help=f"Of models: parameters, MACs, blocks, default exits, and whether the weights are "
            f"on this machine; or names and families only. Default: details of up to {FEW}.",
        ),
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
    if not found and not as_json:
        show(f"no {kind.value} match {pattern!r}" if pattern else f"no {kind.value} yet")
    elif kind is Kind.models:
        list_models(found, details=len(found) <= FEW if details is None else details, json=as_json)
    elif as_json:
        emit([{"name": name, "summary": summary} for name, summary in found])
    else:
        show(table(f"{len(found)} {kind.value}", ["name", "what it is<"], found))


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
