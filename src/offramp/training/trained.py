"""What a stage trains: parameters of a model, and the modules that are in train mode with them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from offramp.model import MultiExitModel

Parameters = list[nn.Parameter]
Trains = Callable[[MultiExitModel], Parameters]
"""Model → the parameters that receive gradient."""
Rates = Callable[[MultiExitModel], list[tuple[Parameters, float]]]
"""Model → parameters with their learning rate as a multiple of the stage's."""


def everything(model: MultiExitModel) -> Parameters:
    """Backbone and exits."""
    return list(model.parameters())


def backbone(model: MultiExitModel) -> Parameters:
    """The backbone with its own classifier, and its reducer's parameters where it has one."""
    return list(model.chain.parameters())


def one_rate(model: MultiExitModel) -> list[tuple[Parameters, float]]:
    """The stage's learning rate for everything."""
    return []


def exits(model: MultiExitModel) -> Parameters:
    """The early heads."""
    return list(model.exits.parameters())


def classifier(model: MultiExitModel) -> Parameters:
    """What the backbone does after its last step: norm and classifier, not the trunk."""
    trunk = below(model, len(model.chain))
    return [p for p in model.backbone.parameters() if id(p) not in trunk]


def layers(model: MultiExitModel, k: int) -> Parameters:
    """Exit k and the blocks between it and the exit before; the final one with its classifier."""
    known = below(model, model.blocks[k - 1]) if k else set()
    if k == len(model.exits):
        return [p for p in model.backbone.parameters() if id(p) not in known]
    here = below(model, model.blocks[k]) - known
    own = [p for p in model.backbone.parameters() if id(p) in here]
    return [*own, *model.exits[k].parameters()]


def below(model: MultiExitModel, block: int) -> set[int]:
    """Ids of the backbone's parameters that the state after ``block`` (1-based) depends on.

    Autograd knows: it finds tokens, position tables and stages that no list of blocks names.
    """
    parameters = list(model.backbone.parameters())
    before = [p.requires_grad for p in parameters]
    modes = [(module, module.training) for module in model.modules()]
    chain = model.chain
    try:
        model.eval()
        model.backbone.requires_grad_(True)
        images = torch.zeros(1, chain.in_chans, *chain.image_size, device=parameters[0].device)
        with torch.enable_grad():
            state = chain.embed(images)
            for step in chain.steps[:block]:
                state = step(*state)
        total = sum((x.float().sum() for x in state if x.requires_grad), images.new_zeros(()))
        found: Sequence[Tensor | None] = torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        for parameter, wanted in zip(parameters, before, strict=True):
            parameter.requires_grad_(wanted)
        for module, training in modes:
            module.training = training
    return {id(p) for p, gradient in zip(parameters, found, strict=True) if gradient is not None}


def modes(model: MultiExitModel, trained: Parameters) -> list[tuple[nn.Module, bool]]:
    """Each module and whether it is in train mode: where all its parameters are trained.

    One without parameters, such as dropout, does what the module around it does. So BatchNorm
    keeps its statistics, and dropout is off, in whatever is frozen.
    """
    ids = {id(parameter) for parameter in trained}

    def visit(module: nn.Module, around: bool) -> Iterator[tuple[nn.Module, bool]]:
        own = [id(parameter) in ids for parameter in module.parameters()]
        mode = all(own) if own else around
        yield module, mode
        for child in module.children():
            yield from visit(child, mode)

    return list(visit(model, False))
