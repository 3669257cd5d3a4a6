"""The two plain heads: a linear classifier and an MLP on the class token (or mean patch)."""

from typing import Literal

import torch
from torch import Tensor, nn

from offramp.chains.state import Tokens, TokenSpec
from offramp.exits.exit import Classifiers, Exit, Outputs, init_head, register_exit

Pool = Literal["auto", "class", "mean"]


def pooled(tokens: Tokens, pool: Pool) -> Tensor:
    """Class tokens (B, T, C), or the mean patch (B, 1, C) where asked or where there is none."""
    if pool == "mean" or tokens.class_tokens == 0:
        return tokens.patches.mean(dim=1, keepdim=True)
    return tokens.classes


@register_exit("linear")
class LinearExit(Exit):
    """Norm, then one linear classifier per class token (the usual internal classifier).

    Args:
        pool: ``class`` tokens, ``mean`` patch, or ``auto``: class tokens where there are any.
        norm: LayerNorm of its own before the classifier; the backbone's final norm is not shared.
        pooler: BERT-style ``Linear(D, D)`` and tanh before the classifier (LGViT's ViT baseline).
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        pool: Pool = "auto",
        norm: bool = True,
        pooler: bool = False,
    ) -> None:
        super().__init__(spec, num_classes)
        self.pool = pool
        self.norm = nn.LayerNorm(spec.width, eps=1e-6) if norm else nn.Identity()
        self.pooler = nn.Linear(spec.width, spec.width) if pooler else None
        self.classifiers = Classifiers(
            spec.width, num_classes, spec.class_tokens if pool != "mean" else 1
        )
        init_head(self)

    def read(self, tokens: Tokens) -> Outputs:
        x = self.norm(pooled(tokens, self.pool))  # (B, T, C)
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        return Outputs(self.classifiers(x))


@register_exit("mlp")
class MLPExit(Exit):
    """Norm, one hidden GELU layer shared by the class tokens, then the classifiers.

    Args:
        pool: as for `LinearExit`.
        ratio: hidden width over token width.
        dropout: probability after the hidden layer, in training.
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        pool: Pool = "auto",
        ratio: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, num_classes)
        self.pool = pool
        hidden = max(1, round(spec.width * ratio))
        self.hidden = nn.Sequential(
            nn.LayerNorm(spec.width, eps=1e-6),
            nn.Linear(spec.width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.classifiers = Classifiers(
            hidden, num_classes, spec.class_tokens if pool != "mean" else 1
        )
        init_head(self)

    def read(self, tokens: Tokens) -> Outputs:
        return Outputs(self.classifiers(self.hidden(pooled(tokens, self.pool))))
