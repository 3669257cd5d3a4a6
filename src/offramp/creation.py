"""offramp.create: a backbone by name or as an object, and exits on it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from offramp.backbones import Built, Pretrained, build, preprocessing_of
from offramp.chains import Chain, chain
from offramp.chains.shapes import size_refusals
from offramp.chains.tapped import Tap
from offramp.errors import OfframpError
from offramp.exits import ExitSpec, expand_layout
from offramp.model import MultiExitModel
from offramp.model_config import ModelConfig, Preprocessing
from offramp.reducers import ReducerSpec, reduced
from offramp.tasks import Target

ExitsArgument = str | Sequence[ExitSpec | dict[str, Any]]
ReducerArgument = str | dict[str, Any] | ReducerSpec | None


def create(
    backbone: str | nn.Module,
    *,
    exits: ExitsArgument = "lgvit",
    reducer: ReducerArgument = None,
    count: int | None = None,
    at: Sequence[int] | None = None,
    tap: Tap = "block",
    options: dict[str, Any] | None = None,
    num_classes: int | None = None,
    pretrained: Pretrained = False,
    image_size: int | tuple[int, int] | None = None,
    backbone_args: dict[str, Any] | None = None,
    labels: list[str] | None = None,
    preprocessing: Preprocessing | Any = None,
    task: Literal["classification", "regression"] = "classification",
    target: Target | None = None,
) -> MultiExitModel:
    """Give a backbone early exits.

    Args:
        backbone: timm name, or a model object (then it is used as it is), also an image classifier
            of ``transformers``.
        exits: a layout (``"lgvit"``), a head's name for that head everywhere (``"linear"``), or one
            specification per exit: ``{"after": 4, "head": "lph", "options": {"kernel": 3}}``.
        reducer: what leaves tokens out: a name, or name and options ``{"name": "tome", "r": 8}``.
        count: number of exits, placed at equal MACs. Default: 8, fewer on shallow backbones.
        at: 1-based blocks instead of ``count``.
        tap: what the heads of a layout read: the block's output, its ``attention``'s, or the
            hidden activation of its ``ffn``.
        options: for every head of a layout, over the layout's own. (In a list each exit says its
            tap and options itself.)
        num_classes: classes of the task; None keeps the backbone's own classifier.
        pretrained: True (timm's cache or the Hub) or the path of a local weights file.
        image_size: pixels; None keeps the backbone's own.
        backbone_args: further keyword arguments of ``timm.create_model``.
        labels: class names by index.
        preprocessing: instead of what the backbone says of itself; an image processor of
            ``transformers`` will do.
        task: ``regression`` gives every exit one number instead of classes.
        target: mean and spread of the numbers to learn; the model is trained on (y − mean) / std.

    Raises:
        OfframpError: for unknown names, positions outside the backbone, impossible options.
    """
    num_classes = _outputs(num_classes, task, target)
    if isinstance(backbone, str):
        name = backbone
        module, arguments = build(
            name,
            num_classes=num_classes,
            pretrained=pretrained,
            image_size=image_size,
            arguments=backbone_args,
        )
    else:
        name, (module, arguments) = _name_of(backbone), Built(backbone, dict(backbone_args or {}))
    fewer = None if reducer is None else ReducerSpec.model_validate(reducer)
    links = reduced(chain(module, image_size=image_size), fewer)
    if links.num_classes < 1:
        raise OfframpError(f"{name} has no classifier of its own: give num_classes=")
    if num_classes is not None and num_classes != links.num_classes:
        raise OfframpError(f"num_classes = {num_classes}, but {name} has {links.num_classes}")
    if isinstance(exits, str):
        specs = expand_layout(exits, step_costs(links), count=count, at=at)
        specs = [
            spec.model_copy(update={"tap": tap, "options": spec.options | (options or {})})
            for spec in specs
        ]
    else:
        if count is not None or at is not None or tap != "block" or options:
            raise OfframpError(
                "count, at, tap and options go with a layout's name, not with a list of exits"
            )
        specs = [e if isinstance(e, ExitSpec) else ExitSpec.model_validate(e) for e in exits]
    config = ModelConfig(
        backbone=name,
        backbone_args=arguments,
        external=not isinstance(backbone, str),
        num_classes=links.num_classes,
        exits=sorted(specs, key=lambda spec: spec.after),
        reducer=fewer,
        preprocessing=preprocessing_of(links, preprocessing),
        labels=labels or _labels_of(module, links.num_classes),
        task=task,
        target=(target or Target()) if task == "regression" else None,
    )
    return MultiExitModel(module, config)


@torch.no_grad()
def step_costs(links: Chain) -> list[int]:
    """MACs of each step for one image, for the placement of exits."""
    from offramp.costs.evaluating import evaluating
    from offramp.costs.macs import count_macs

    device = next(links.backbone.parameters()).device
    costs = []
    with evaluating(links), size_refusals(links):
        state = links.embed(torch.zeros(1, links.in_chans, *links.image_size, device=device))
        for step in links.steps:
            costs.append(count_macs(step, *state))
            state = step(*state)
    return costs


def _outputs(num_classes: int | None, task: str, target: Target | None) -> int | None:
    """Outputs of every exit, refusing what does not go with the task."""
    if task != "regression":
        if target is not None:
            raise OfframpError(f"target goes with task='regression', not with {task!r}")
        return num_classes
    if num_classes not in (None, 1):
        raise OfframpError(f"num_classes = {num_classes}, but a regression model has one output")
    return 1


def _labels_of(backbone: nn.Module, count: int) -> list[str] | None:
    """Names of the classes that a transformers model brings; its placeholders are none."""
    known = getattr(getattr(backbone, "config", None), "id2label", None) or {}
    names = [str(known.get(k, "")) for k in range(count)]
    told = all(names) and any(name != f"LABEL_{k}" for k, name in enumerate(names))
    return names if told else None


def _name_of(backbone: nn.Module) -> str:
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(backbone).__name__)
