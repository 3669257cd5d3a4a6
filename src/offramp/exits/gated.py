"""JEI-DNN's gates: any head can also hold back a share of the samples for itself.

Regol, Chataoui and Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network",
ICLR 2024, arXiv 2310.09163. The recipe ``jei_dnn`` trains the gates, the policy of that name stops
by them.
"""

import copy
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from offramp.chains.state import Tokens
from offramp.errors import OfframpError
from offramp.exits.exit import Carry, Exit, register_wrapper
from offramp.exits.layout import ExitSpec, register_layout

STATISTICS = 4


def statistics(logits: Tensor) -> Tensor:
    """What a gate reads of logits (B, C): max p, H(p), p₁ - p₂ and H(p²/Σp²), (B, 4) float32.

    Entropies in nats. The last is the entropy at half the temperature: p²/Σp² = softmax(2z).
    Detached: no gradient of a gate reaches the head.
    """
    z = logits.detach().float()
    p = torch.softmax(z, dim=-1)
    first, second = p.topk(2, dim=-1).values.unbind(-1)
    return torch.stack([first, _entropy(p), first - second, _entropy(torch.softmax(2 * z, -1))], 1)


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(dim=-1)


@register_wrapper("gate")
class GatedExit(Exit):
    """A head that also gives the signal ``gate`` (B,): the logit a of its gate g = σ(a).

    a = w · statistics(logits) + b, five parameters of its own; nothing is read of the features.

    Args:
        head: the head that answers.
    """

    def __init__(self, head: Exit) -> None:
        super().__init__(head.spec, head.num_classes)
        if head.num_classes < 2:
            raise OfframpError("a gate reads the probabilities of classes: it needs at least two")
        self.head: nn.Module = head
        self.standalone, self.summary = head.standalone, head.summary
        self.says = _with_gate(head.says)
        self.gate = nn.Linear(STATISTICS, 1)

    def read(self, tokens: Tokens) -> NamedTuple:
        return self.forward(tokens)[0]

    def forward(self, tokens: Tokens, carry: Carry = ()) -> tuple[NamedTuple, Carry]:
        said, carry = self.head(tokens, carry)
        read = statistics(said.logits).to(self.gate.weight.dtype)
        outputs: Any = self.says(*said, self.gate(read).squeeze(1))
        return outputs, carry

    def for_inference(self) -> nn.Module:
        fast = copy.deepcopy(self)
        assert isinstance(fast.head, Exit)
        fast.head = fast.head.for_inference()
        return fast.requires_grad_(False)


def gates(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of all gates in a module."""
    found = [part.gate for part in module.modules() if isinstance(part, GatedExit)]
    return [parameter for gate in found for parameter in gate.parameters()]


def _with_gate(says: type[Any]) -> type[Any]:
    """A NamedTuple of the same fields and ``gate``."""
    return namedtuple("GatedOutputs", (*says._fields, "gate"))


@register_layout("jei_dnn")
def jei_dnn_layout(positions: Sequence[int]) -> list[ExitSpec]:
    """JEI-DNN: a linear head with a gate everywhere.

    The paper's heads read the class token through the backbone's own final norm, frozen; these have
    a norm of their own, as the blocks' scales differ.
    """
    return [ExitSpec(after=after, head="linear", options={"gate": True}) for after in positions]
