"""A ViT's classifier over tokens that stand for several patches."""

from typing import Any

from torch import Tensor

from offramp.chains.chain import Chain
from offramp.errors import OfframpError


def finish_sized(chain: Chain, x: Tensor, size: Tensor) -> Tensor:
    """Final norm and classifier; a mean over patches counts each token ``size`` (B, T) times."""
    model: Any = chain.backbone
    return classify_sized(chain, model.norm(x), size)


def classify_sized(chain: Chain, x: Tensor, size: Tensor) -> Tensor:
    """`finish_sized` without the final norm."""
    model: Any = chain.backbone
    if model.global_pool == "token" or hasattr(model, "head_dist"):
        return chain.classify(x)
    if model.global_pool != "avg" or model.attn_pool is not None:
        raise OfframpError(
            f"a token reducer cannot pool with {model.global_pool!r} (use 'token' or 'avg')"
        )
    prefix = int(model.num_prefix_tokens)
    weights = size[:, prefix:].to(x.dtype)
    mean = (weights.unsqueeze(1) @ x[:, prefix:]).squeeze(1) / weights.sum(1, keepdim=True)
    return model.head(model.head_drop(model.fc_norm(mean)))
