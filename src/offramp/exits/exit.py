"""What an exit is: a head that turns tokens into outputs, and a carry for the exits behind it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.registry import Registry


class Outputs(NamedTuple):
    """What an exit says about a batch: logits (B, num_classes).

    Exits with signals (a gate's statistic, a learned error score) return a NamedTuple of their own
    with ``logits`` first; whatever else stands in it is recorded by name.
    """

    logits: Tensor


Carry = tuple[Tensor, ...]


class Exit(nn.Module, ABC):
    """A head after a step. Built from the tokens' shape, the number of classes and its options."""

    standalone: bool = True
    """False when it needs what an earlier exit computed, so that one cannot be switched off."""

    summary: bool = False
    """True when it reads no more of the patches than their mean, so that `Tokens.summary` will do
    for it, as where features are cached."""

    says: type[Any] = Outputs
    """The NamedTuple it answers with."""

    def __init__(self, spec: TokenSpec, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes

    @abstractmethod
    def read(self, tokens: Tokens) -> NamedTuple:
        """Tokens → outputs, for the common exit that carries nothing."""

    def forward(self, tokens: Tokens, carry: Carry = ()) -> tuple[NamedTuple, Carry]:
        """Tokens and the carry of earlier exits → outputs and the carry for later ones."""
        return self.read(tokens), carry

    def for_inference(self) -> nn.Module:
        """An equivalent module that is faster in eval mode (folded norms, earlier pooling)."""
        return self

    @classmethod
    def along(cls, count: int) -> list[dict[str, Any]]:
        """Options of each of ``count`` such heads when no other head stands on a backbone."""
        return [{} for _ in range(count)]


EXITS: Registry[type[Exit]] = Registry("exit")
register_exit = EXITS.register

WRAPPERS: Registry[Callable[[Exit], Exit]] = Registry("option of every exit")
"""What can be had with any head by an option of this name: a head → the head with more to say."""
register_wrapper = WRAPPERS.register


def build_exit(
    name: str, spec: TokenSpec, num_classes: int, options: dict[str, Any] | None = None
) -> Exit:
    """Build the registered head ``name``, checking its options by name.

    Options named in `WRAPPERS` go with every head.
    """
    head = EXITS.get(name)
    own = dict(options or {})
    wrappers = [WRAPPERS.get(option) for option in WRAPPERS.names() if own.pop(option, False)]
    known = [
        parameter.name
        for parameter in inspect.signature(head.__init__).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for option in own:
        if option not in known:
            accepted = ", ".join([*known, *WRAPPERS.names()]) or "none"
            raise OfframpError(f"exit {name!r} has no option {option!r} (it accepts: {accepted})")
    built = head(spec, num_classes, **own)
    for wrap in wrappers:
        built = wrap(built)
    return built


HeadKind = Literal["linear", "mlp"]


def classifier(width: int, num_classes: int, head: HeadKind = "linear") -> nn.Module:
    """What turns features (…, width) into logits (…, num_classes).

    Args:
        head: ``linear``, or ``mlp``: hidden layers of 4·width and width, GELU and dropout 0.1
            behind each (both are found in ports of Multi-Exit ViT).
    """
    if head not in get_args(HeadKind):
        raise OfframpError(f"head = {head!r} (use 'linear' or 'mlp')")
    if head == "linear":
        return nn.Linear(width, num_classes)
    return nn.Sequential(
        nn.Linear(width, 4 * width),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(4 * width, width),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(width, num_classes),
    )


class Classifiers(nn.Module):
    """One `classifier` per class token; their logits are averaged (DeiT's two classifiers).

    Reads (B, max(class_tokens, 1), C), gives (B, num_classes).
    """

    def __init__(
        self, width: int, num_classes: int, class_tokens: int, head: HeadKind = "linear"
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            classifier(width, num_classes, head) for _ in range(max(class_tokens, 1))
        )

    def forward(self, features: Tensor) -> Tensor:
        logits = self.heads[0](features[:, 0])
        for i in range(1, len(self.heads)):
            logits = logits + self.heads[i](features[:, i])
        return logits / len(self.heads) if len(self.heads) > 1 else logits


def init_head(module: nn.Module) -> None:
    """Initialise a new head: weights of linear and convolution layers truncated normal with
    standard deviation 0.02, biases 0, norms as they come (LGViT's released initialisation)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with a copy of these weights (out, in) and (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
