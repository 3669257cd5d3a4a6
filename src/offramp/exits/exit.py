"""What an exit is: a head that turns tokens into outputs, and a carry for the exits behind it."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

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

    standalone: ClassVar[bool] = True
    """False when it needs what an earlier exit computed, so that one cannot be switched off."""

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


EXITS: Registry[type[Exit]] = Registry("exit")
register_exit = EXITS.register


def build_exit(
    name: str, spec: TokenSpec, num_classes: int, options: dict[str, Any] | None = None
) -> Exit:
    """Build the registered head ``name``, checking its options by name."""
    head = EXITS.get(name)
    known = [
        parameter.name
        for parameter in inspect.signature(head.__init__).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for option in options or {}:
        if option not in known:
            accepted = ", ".join(known) or "none"
            raise OfframpError(f"exit {name!r} has no option {option!r} (it accepts: {accepted})")
    return head(spec, num_classes, **(options or {}))


class Classifiers(nn.Module):
    """One linear classifier per class token; their logits are averaged (DeiT's two classifiers).

    Reads (B, max(class_tokens, 1), C), gives (B, num_classes).
    """

    def __init__(self, width: int, num_classes: int, class_tokens: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Linear(width, num_classes) for _ in range(max(class_tokens, 1))
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
