"""offramp.cascade: trained models put one behind the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from offramp.cascades.sizes import Resized, Size, pixels, resized
from offramp.errors import OfframpError
from offramp.exits import ExitSpec
from offramp.model import MultiExitModel, load
from offramp.model_config import ModelConfig, Preprocessing
from offramp.zoo.cascade import Cascade, Shared

NAME = "cascade"
END = "member"
"""The head that reads a member's own answer."""


def cascade(
    models: Sequence[MultiExitModel | str | Path],
    *,
    sizes: Sequence[int | Size | None] | None = None,
    average: bool = False,
    exits: bool = True,
) -> MultiExitModel:
    """Put trained models one behind the other: an image goes on where nobody was sure.

    The result is a multi-exit model like any other, with an exit at every model's end. It takes
    images of the largest size, prepared as the model of that size wants them; each model resizes
    and normalises them for itself. Savings are stated against the last model alone.

    Args:
        models: multi-exit models, or folders and Hub ids of saved ones, from cheap to good. One
            given twice, at two ``sizes``, is a cascade of its own, with its weights stored once.
        sizes: pixels each looks at, one number or (H, W); None: those it was made for.
        average: answer with the mean of the logits of the models asked so far.
        exits: keep the models' own early exits as exits of the cascade.

    Raises:
        OfframpError: for less than two models, or models whose classes or tasks differ.

    Example:
        ``offramp.cascade([tiny, tiny, small], sizes=[112, 224, 224])``
    """
    loaded = _loaded(models)
    if len(loaded) < 2:
        raise OfframpError(f"a cascade of {len(loaded)} models, but it needs two at least")
    if sizes is not None and len(sizes) != len(loaded):
        raise OfframpError(f"{len(loaded)} models, but sizes for {len(sizes)} of them")
    own = [model.preprocessing.image_size for model in loaded]
    asked = [_pair(size) or given for size, given in zip(sizes or own, own, strict=True)]
    _check(loaded, asked)
    lead = loaded[0].config
    modules, shared, members = _modules(loaded, asked)
    norms = [(m.preprocessing.mean, m.preprocessing.std) for m in loaded]
    backbone = Cascade(modules, asked, average=average, norms=norms, shared=shared)
    leader = loaded[backbone.lead].preprocessing
    specs, heads = _exits(loaded, keep=exits)
    config = ModelConfig(
        backbone=NAME,
        backbone_args={"members": members, "average": average},
        external=any(model.config.external for model in loaded),
        num_classes=lead.num_classes,
        exits=specs,
        preprocessing=Preprocessing.model_validate(
            {**leader.model_dump(), "image_size": backbone.image_size}
        ),
        labels=next((m.labels for m in loaded if m.labels is not None), None),
        task=lead.task,
        target=lead.target,
    )
    made = MultiExitModel(backbone, config)
    for head, source, spec in zip(made.heads, heads, specs, strict=True):
        if source is not None:
            _take_weights(head, source, spec)
    return made.eval()


def _loaded(models: Sequence[MultiExitModel | str | Path]) -> list[MultiExitModel]:
    """The models; a folder that is named twice is loaded once."""
    known: dict[str, MultiExitModel] = {}
    found = []
    for given in models:
        if not isinstance(given, MultiExitModel):
            name = str(given)
            known[name] = known.get(name) or load(name)
            given = known[name]
        found.append(given)
    return found


def _check(models: Sequence[MultiExitModel], sizes: Sequence[Size]) -> None:
    first = models[0].config
    for number, (model, size) in enumerate(zip(models, sizes, strict=True), start=1):
        config = model.config
        for what in ("num_classes", "task", "target", "labels"):
            had, has = getattr(first, what), getattr(config, what)
            if had != has and (what != "labels" or None not in (had, has)):
                raise OfframpError(
                    f"models of a cascade must agree, but {what} of model {number} is "
                    f"{_short(has)}, and {_short(had)} in the first"
                )
        if getattr(config, "reducer", None) is not None:
            raise OfframpError(
                f"model {number} carries a token reducer, which a cascade cannot hold yet"
            )
        before = zip(models[: number - 1], sizes[: number - 1], strict=True)
        if any(model is other and size == had for other, had in before):
            raise OfframpError(f"model {number} stands in the cascade twice at {pixels(size)}")


def _modules(
    models: Sequence[MultiExitModel], sizes: Sequence[Size]
) -> tuple[list[nn.Module], list[Shared | None], list[dict[str, Any]]]:
    """Backbones at their sizes, whose weights they have, and how to build each again."""
    owners: dict[int, int] = {}  # id of a model → the member that stores its weights
    for number, (model, size) in enumerate(zip(models, sizes, strict=True)):
        if size == model.preprocessing.image_size or id(model) not in owners:
            owners[id(model)] = number
    parts = [
        Resized(model.backbone, model.config.backbone_args, ())
        if size == model.preprocessing.image_size
        else resized(model, size)
        for model, size in zip(models, sizes, strict=True)
    ]
    shared: list[Shared | None] = []
    described = []
    for number, (model, part, size) in enumerate(zip(models, parts, sizes, strict=True)):
        owner = owners[id(model)]
        own = sorted({*part.own, *parts[owner].own})
        shared.append(None if owner == number else Shared(owner, tuple(own)))
        described.append(
            {
                "backbone": model.config.backbone,
                "arguments": part.arguments,
                "image_size": list(size),
                "mean": list(model.preprocessing.mean),
                "std": list(model.preprocessing.std),
                "shares": None if owner == number else owner,
                "own": [] if owner == number else own,
            }
        )
    return [part.module for part in parts], shared, described


def _exits(
    models: Sequence[MultiExitModel], *, keep: bool
) -> tuple[list[ExitSpec], list[nn.Module | None]]:
    """Every exit of the cascade, and the trained head it takes its weights from."""
    specs: list[ExitSpec] = []
    heads: list[nn.Module | None] = []
    done = 0
    for model in models:
        if keep:
            own = sorted(model.config.exits, key=lambda spec: spec.after)
            specs += [spec.model_copy(update={"after": done + spec.after}) for spec in own]
            heads += model.heads
        done += len(model.chain)
        specs.append(ExitSpec(after=done, head=END))
        heads.append(None)
    return specs[:-1], heads[:-1]  # the last one's end is the cascade's own


def _take_weights(head: nn.Module, source: nn.Module, spec: ExitSpec) -> None:
    try:
        head.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise OfframpError(
            f"the exit {spec.head!r} after block {spec.after} was trained at another image size "
            "and does not fit this one: leave the models' own exits out (exits=False)"
        ) from error


def _pair(size: int | Size | None) -> Size | None:
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
