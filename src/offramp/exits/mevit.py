"""Multi-Exit ViT's heads on the class token, MLP-EE and ViT-EE, and what its layer heads share.

Bakhtiarnia, Zhang and Iosifidis, "Multi-Exit Vision Transformer for Dynamic Inference", BMVC 2021,
arXiv 2106.15183. Where implementations disagree (classifier, read-out), an option offers the
readings. The encoder block is timm's.
"""

import copy
from abc import abstractmethod
from functools import partial
from typing import Literal

from torch import Tensor, nn

from offramp import vision_cure
from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import Classifiers, Exit, HeadKind, Outputs, init_head, register_exit
from offramp.exits.mevit_inference import LeadingBlock
from offramp.exits.reading import attention_heads, check_choice, pooled, sequence

Readout = Literal["auto", "class", "mean"]


@register_exit("mlp_ee")
class MLPEE(Exit):
    """MLP-EE of Multi-Exit ViT: LayerNorm and a classifier on the class token alone.

    Args:
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    summary = True

    def __init__(self, spec: TokenSpec, num_classes: int, *, head: HeadKind = "linear") -> None:
        super().__init__(spec, num_classes)
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.classifiers = Classifiers(spec.width, num_classes, spec.class_tokens, head)
        init_head(self)

    def read(self, tokens: Tokens) -> Outputs:
        return Outputs(self.classifiers(self.norm(pooled(tokens, "auto"))))


class LayerExit(Exit):
    """One more layer over tokens (B, n, D), a norm, the read-out and the classifiers.

    Args:
        layer, norm: tokens → tokens.
        width: D.
        leading: how many leading tokens are read out; 0 for the mean of all.
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        layer: nn.Module,
        norm: nn.Module,
        *,
        width: int,
        leading: int,
        head: HeadKind,
    ) -> None:
        super().__init__(spec, num_classes)
        self.layer, self.norm, self.leading = layer, norm, leading
        self.classifiers = Classifiers(width, num_classes, leading, head)
        init_head(self)

    def sequence(self, tokens: Tokens) -> Tensor:
        """What goes into the layer, (B, n, D)."""
        return sequence(tokens)

    def read(self, tokens: Tokens) -> Outputs:
        x = self.norm(self.layer(self.sequence(tokens)))
        x = x[:, : self.leading] if self.leading else x.mean(dim=1, keepdim=True)
        return Outputs(self.classifiers(x))

    @abstractmethod
    def leading_layer(self) -> nn.Module:
        """The layer with its leading tokens as only result."""

    def for_inference(self) -> nn.Module:
        if not self.leading:
            return self
        fast = copy.deepcopy(self)
        fast.layer = self.leading_layer()
        return fast.requires_grad_(False)


def leading_tokens(name: str, pool: Readout, class_tokens: int) -> int:
    """How many leading tokens a read-out takes: the class tokens, or 0 for the mean of all."""
    check_choice(name, "pool", pool, ("auto", "class", "mean"))
    if pool == "class" and class_tokens == 0:
        raise OfframpError(f"{name}: pool = 'class', but no class token enters (use 'mean')")
    return 0 if pool == "mean" else class_tokens


def encoder_block(width: int, heads: int, *, ratio: float, dropout: float) -> nn.Module:
    """A pre-norm transformer block with dropout behind attention and inside the MLP."""
    vision_cure.ensure()
    from timm.models.vision_transformer import Block

    norm = partial(nn.LayerNorm, eps=1e-6)
    return Block(width, heads, ratio, qkv_bias=True, proj_drop=dropout, norm_layer=norm)


@register_exit("vit_ee")
class ViTEE(LayerExit):
    """ViT-EE of Multi-Exit ViT: one more encoder block, LayerNorm, classifier on the class token.

    Args:
        heads: attention heads; by default the backbone's.
        ratio: hidden width of the block's MLP over token width.
        dropout: probability behind attention and inside the MLP, in training.
        pool: ``class`` tokens, ``mean`` of all tokens, or ``auto``: class tokens where there are.
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        heads: int | None = None,
        ratio: float = 4.0,
        dropout: float = 0.1,
        pool: Readout = "auto",
        head: HeadKind = "linear",
    ) -> None:
        D = spec.width
        heads = attention_heads("vit_ee", D, heads, spec.heads)
        super().__init__(
            spec,
            num_classes,
            encoder_block(D, heads, ratio=ratio, dropout=dropout),
            nn.LayerNorm(D, eps=1e-6),
            width=D,
            leading=leading_tokens("vit_ee", pool, spec.class_tokens),
            head=head,
        )

    def leading_layer(self) -> nn.Module:
        return LeadingBlock(self.layer, self.leading)
