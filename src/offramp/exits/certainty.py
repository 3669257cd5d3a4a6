"""Learning to exit: any head can also say how sure it is of its answer.

Xin et al., "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression",
EACL 2021. The policy ``learned`` stops by this signal, the recipe ``berxit`` trains it.
"""

import copy
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from offramp.chains.state import Tokens
from offramp.exits.exit import Carry, Exit, init_head, register_wrapper
from offramp.exits.layout import ExitSpec, register_layout
from offramp.exits.reading import pooled


@register_wrapper("lte")
class CertaintyExit(Exit):
    """A head that also gives the signal ``certainty`` (B,): its learned chance of being right.

    It is σ(w · LayerNorm(t) + b) on the mean class token, or the mean patch where there is none.
    BERxiT shares one w between all layers; here every exit has its own, because the widths and
    scales of a vision backbone's layers may differ.

    Args:
        head: the head that answers.
    """

    def __init__(self, head: Exit) -> None:
        super().__init__(head.spec, head.num_classes)
        self.head: nn.Module = head
        self.standalone, self.summary = head.standalone, head.summary
        self.says = _with_certainty(head.says)
        self.judge = nn.Sequential(
            nn.LayerNorm(head.spec.width, eps=1e-6), nn.Linear(head.spec.width, 1)
        )
        init_head(self.judge)

    def read(self, tokens: Tokens) -> NamedTuple:
        return self.forward(tokens)[0]

    def forward(self, tokens: Tokens, carry: Carry = ()) -> tuple[NamedTuple, Carry]:
        said, carry = self.head(tokens, carry)
        features = pooled(tokens, "auto").mean(dim=1)  # (B, D)
        certainty = torch.sigmoid(self.judge(features)).squeeze(1)
        outputs: Any = self.says(*said, certainty)
        return outputs, carry

    def for_inference(self) -> nn.Module:
        fast = copy.deepcopy(self)
        assert isinstance(fast.head, Exit)
        fast.head = fast.head.for_inference()
        return fast.requires_grad_(False)


def _with_certainty(says: type[Any]) -> type[Any]:
    """A NamedTuple of the same fields and ``certainty``."""
    return namedtuple("CertainOutputs", (*says._fields, "certainty"))


@register_layout("berxit")
def berxit_layout(positions: Sequence[int]) -> list[ExitSpec]:
    """BERxiT: the pooler head everywhere, each with its learned certainty."""
    return [ExitSpec(after=after, head="pooler", options={"lte": True}) for after in positions]
