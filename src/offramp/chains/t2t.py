"""The zoo's T2T-ViT: a ViT to the chain, since making the tokens is all of it part of embed."""

from torch import nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.vit import ViTChain


def _is_t2t(model: nn.Module) -> bool:
    return descends(model, "offramp.zoo.t2t", "T2TViT")


FAMILIES.register("t2t")(
    Family("T2T-ViT: a ViT on tokens made step by step from overlapping windows", _is_t2t, ViTChain)
)
