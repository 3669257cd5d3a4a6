"""What models there are by name: their family at once, their size and cost when asked."""

import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from sys import modules
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import nn

from offramp.backbones import register_zoo
from offramp.chains import FAMILIES, chain
from offramp.costs import count_macs
from offramp.creation import step_costs
from offramp.exits import expand_layout


class ModelFacts(NamedTuple):
    """What a model costs as it is, and where its exits stand when nobody says.

    Attributes:
        image_size: H, W in pixels it was published with.
        parameters: its own classifier included.
        macs: multiply-accumulates for one image, without exits.
        blocks: steps of its chain.
        default_exits: 1-based blocks behind which the early exits stand by default.
        weights_local: whether ``pretrained=True`` would find its weights on this machine.
    """

    image_size: tuple[int, int]
    parameters: int
    macs: int
    blocks: int
    default_exits: tuple[int, ...]
    weights_local: bool


def supported_models() -> dict[str, str]:
    """Name → family of every timm model that a registered family recognises.

    Building more than a thousand models to ask about each would take minutes; families are shown
    an empty instance of the class that a model's function says it returns.
    """
    register_zoo()
    import timm

    found = {}
    for name in timm.list_models():
        for kind in _classes(timm.model_entrypoint(name)):
            if family := _family(kind):
                found[name] = family
                break
    return found


def model_facts(name: str) -> ModelFacts:
    """Build a model without weights or arithmetic (torch's meta device) and count.

    Raises:
        OfframpError: when this member of a family cannot be seen as a chain.
    """
    register_zoo()
    import timm

    with torch.device("meta"):
        model = timm.create_model(name).eval()
        links = chain(model)
        images = torch.empty(1, links.in_chans, *links.image_size)
        macs = count_macs(links.whole, images)
        exits = expand_layout("linear", step_costs(links))
    return ModelFacts(
        image_size=links.image_size,
        parameters=sum(p.numel() for p in model.parameters()),
        macs=macs,
        blocks=len(links),
        default_exits=tuple(spec.after for spec in exits),
        weights_local=weights_are_local(name),
    )


def weights_are_local(name: str) -> bool:
    """Whether timm would find a model's weights in its caches, without asking the network."""
    register_zoo()
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None:
        return False
    if config.file:
        return Path(config.file).is_file()
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        files = _hub_files(config.hf_hub_filename)
        return any(
            isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str)
            for file in files
        )
    if config.url:
        checkpoint = Path(urlparse(config.url).path).name
        return (Path(torch.hub.get_dir()) / "checkpoints" / checkpoint).is_file()
    return False


def _hub_files(named: str | None) -> Iterator[str]:
    """Files that timm looks for in a repository: the one its configuration names, or the usual."""
    file = named or "pytorch_model.bin"
    yield file
    yield file.replace("pytorch_model.bin", "model.safetensors").replace(".bin", ".safetensors")


def _family(kind: type[nn.Module]) -> str | None:
    empty = kind.__new__(kind)
    names = FAMILIES.names()
    return next((name for name in names if FAMILIES.get(name).matches(empty)), None)


def _classes(build: Any) -> list[type[nn.Module]]:
    """The class a model's function says it returns, else those that its file defines."""
    room = modules[build.__module__]
    said = inspect.signature(build).return_annotation
    said = getattr(room, said, None) if isinstance(said, str) else said
    if inspect.isclass(said) and issubclass(said, nn.Module):
        return [] if said is nn.Module else [said]
    return _defined(build.__module__)


@cache
def _defined(room: str) -> list[type[nn.Module]]:
    members = vars(modules[room]).values()
    return [
        kind
        for kind in members
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == room
    ]
