"""The plain heads: a linear classifier, a pooler and an MLP on the class token or mean patch."""

import torch
from torch import nn

from offramp.chains.state import Tokens, TokenSpec
from offramp.exits.exit import Classifiers, Exit, Outputs, init_head, register_exit
from offramp.exits.reading import Pool, pooled, pooled_shape


@register_exit("linear")
class LinearExit(Exit):
    """Norm, then one linear classifier per class token (the usual internal classifier).

    Args:
        pool: ``class`` tokens, ``mean`` patch, ``auto``: class tokens where there are any, or
            ``both``: each class token with the mean patch behind it.
        norm: LayerNorm of its own before the classifier; the backbone's final norm is not shared.
        pooler: BERT-style ``Linear(D, D)`` and tanh before the classifier (LGViT's ViT baseline).
        dropout: probability before the classifier, in training.
    """

    summary = True

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        pool: Pool = "auto",
        norm: bool = True,
        pooler: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, num_classes)
        vectors, width = pooled_shape("linear", spec, pool)
        self.pool = pool
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()
        self.pooler = nn.Linear(width, spec.width) if pooler else None
        self.dropout = nn.Dropout(dropout)
        self.classifiers = Classifiers(spec.width if pooler else width, num_classes, vectors)
        init_head(self)

    def read(self, tokens: Tokens) -> Outputs:
        x = self.norm(pooled(tokens, self.pool))  # (B, T, C)
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        return Outputs(self.classifiers(self.dropout(x)))


@register_exit("pooler")
class PoolerExit(LinearExit):
    """BERT's pooler and a linear classifier: the head of DeeBERT and PABEE.

    Xin et al., ACL 2020, and Zhou et al., NeurIPS 2020: ``Linear(D, D)`` and tanh on the class
    token, dropout, ``Linear(D, C)``.

    Args:
        pool: as for `LinearExit`.
        norm: LayerNorm first. BERT's blocks end in one and want ``False``; those of vision
            transformers end in the bare residual stream.
        dropout: probability before the classifier, in training.
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        pool: Pool = "auto",
        norm: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(spec, num_classes, pool=pool, norm=norm, pooler=True, dropout=dropout)


@register_exit("mlp")
class MLPExit(Exit):
    """Norm, one hidden GELU layer shared by the class tokens, then the classifiers.

    Args:
        pool: as for `LinearExit`.
        ratio: hidden width over token width.
        dropout: probability after the hidden layer, in training.
    """

    summary = True

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
        vectors, width = pooled_shape("mlp", spec, pool)
        self.pool = pool
        hidden = max(1, round(spec.width * ratio))
        self.hidden = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.classifiers = Classifiers(hidden, num_classes, vectors)
        init_head(self)

    def read(self, tokens: Tokens) -> Outputs:
        return Outputs(self.classifiers(self.hidden(pooled(tokens, self.pool))))
