"""Multi-Exit ViT's heads that mix tokens by fixed weights: MLP-Mixer-EE and ResMLP-EE.

Bakhtiarnia et al., BMVC 2021, arXiv 2106.15183. Where implementations disagree (mixed tokens,
hidden width, read-out, classifier), an option offers the readings. The layers are timm's: MLP-Mixer
(Tolstikhin et al., NeurIPS 2021) and ResMLP (Touvron et al., arXiv 2105.03404). A weight per token
ties them to one image size and to backbones that keep all their tokens.
"""

from typing import Literal

from torch import Tensor, nn

from offramp import vision_cure
from offramp.chains.state import Tokens, TokenSpec
from offramp.exits.exit import HeadKind, register_exit
from offramp.exits.mevit import LayerExit, Readout, leading_tokens
from offramp.exits.mevit_inference import LeadingMixer, LeadingResMLP
from offramp.exits.reading import check_choice, grid_of, sequence

Mixed = Literal["all", "patches"]


class TokenMixingExit(LayerExit):
    """A layer with weights per token, so that the number of tokens is fixed."""

    def __init__(
        self,
        name: str,
        spec: TokenSpec,
        num_classes: int,
        layer: nn.Module,
        norm: nn.Module,
        *,
        tokens: Mixed,
        pool: Readout,
        head: HeadKind,
    ) -> None:
        classes = tokens == "all"
        leading = leading_tokens(name, pool, spec.class_tokens if classes else 0)
        super().__init__(
            spec, num_classes, layer, norm, width=spec.width, leading=leading, head=head
        )
        self.classes = classes

    def sequence(self, tokens: Tokens) -> Tensor:
        return sequence(tokens, classes=self.classes)


def mixed_tokens(name: str, spec: TokenSpec, tokens: Mixed) -> int:
    """n: class tokens and patches, or patches alone; refuses tokens whose number is not fixed."""
    check_choice(name, "tokens", tokens, ("all", "patches"))
    rows, columns = grid_of(name, spec)
    return rows * columns + (spec.class_tokens if tokens == "all" else 0)


@register_exit("mixer_ee")
class MixerEE(TokenMixingExit):
    """MLP-Mixer-EE of Multi-Exit ViT: one mixer layer, LayerNorm, classifier on the class token.

    Args:
        tokens: ``all`` mixes the class tokens with the patches, ``patches`` leaves them out.
        token_ratio: hidden width of the token MLP over token width: 0.5 as in Mixer-B/16, 4 where
            both MLPs have one hidden width.
        pool: ``class`` tokens, ``mean`` of the mixed tokens, or ``auto``: class tokens where mixed.
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        tokens: Mixed = "all",
        token_ratio: float = 0.5,
        pool: Readout = "auto",
        head: HeadKind = "linear",
    ) -> None:
        n, D = mixed_tokens("mixer_ee", spec, tokens), spec.width
        vision_cure.ensure()
        from timm.models.mlp_mixer import MixerBlock

        layer, norm = MixerBlock(D, n, mlp_ratio=(token_ratio, 4.0)), nn.LayerNorm(D, eps=1e-6)
        super().__init__(
            "mixer_ee", spec, num_classes, layer, norm, tokens=tokens, pool=pool, head=head
        )

    def leading_layer(self) -> nn.Module:
        return LeadingMixer(self.layer, self.leading)


@register_exit("resmlp_ee")
class ResMLPEE(TokenMixingExit):
    """ResMLP-EE of Multi-Exit ViT: one ResMLP layer, affine, classifier on the mean token.

    Args:
        tokens: ``all`` mixes the class tokens with the patches, ``patches`` leaves them out.
        pool: ``class`` tokens, ``mean`` of the mixed tokens, or ``auto``: class tokens where mixed.
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        tokens: Mixed = "all",
        pool: Readout = "mean",
        head: HeadKind = "linear",
    ) -> None:
        n, D = mixed_tokens("resmlp_ee", spec, tokens), spec.width
        vision_cure.ensure()
        from timm.models.mlp_mixer import Affine, ResBlock

        layer, norm = ResBlock(D, n, init_values=0.1), Affine(D)
        super().__init__(
            "resmlp_ee", spec, num_classes, layer, norm, tokens=tokens, pool=pool, head=head
        )

    def leading_layer(self) -> nn.Module:
        return LeadingResMLP(self.layer, self.leading)
