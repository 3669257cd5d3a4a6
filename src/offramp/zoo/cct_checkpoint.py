"""CCT's released weights under our names."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from offramp.zoo.checkpoints import strict, unwrap

if TYPE_CHECKING:
    from offramp.zoo.cct import CCT

# names in the released weights → ours, tried in this order
RENAMED = (
    ("tokenizer.conv_layers.", "tokenizer."),
    ("classifier.positional_emb", "pos_embed"),
    ("classifier.attention_pool.", "pool.score."),
    ("classifier.norm.", "norm."),
    ("classifier.fc.", "head."),
    ("classifier.", ""),
)
RENAMED_IN_BLOCKS = (
    (".norm1.", ".norm2."),
    (".pre_norm.", ".norm1."),
    (".self_attn.", ".attn."),
    (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."),
)


def convert(checkpoint: Mapping[str, Any], model: "CCT") -> dict[str, Tensor]:
    """Released weights, or our own, as a state dict of ``model``.

    A position table of another image size is resized.

    Raises:
        OfframpError: when names or shapes do not fit.
    """
    state = unwrap(checkpoint)
    if any(name.startswith("classifier.") for name in state):
        state = {_rename(name): tensor for name, tensor in state.items()}
    table = state.get("pos_embed")
    if table is not None and table.ndim == 3 and table.shape[1] != model.pos_embed.shape[1]:
        state["pos_embed"] = resample_abs_pos_embed(table, model.grid_size, num_prefix_tokens=0)
    return strict(state, model)


def _rename(name: str) -> str:
    old, new = next(((o, n) for o, n in RENAMED if name.startswith(o)), ("", ""))
    name = new + name.removeprefix(old)
    if name.startswith("blocks."):
        part, ours = next(((p, o) for p, o in RENAMED_IN_BLOCKS if p in name), ("", ""))
        name = name.replace(part, ours, 1) if part else name
    return name
