"""ViL's released weights under our names."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import OfframpError
from offramp.zoo.checkpoints import strict, unwrap
from offramp.zoo.vil_tables import resize_bias, resize_line

# names in the released weights → ours; part 0 of a stage embeds, then attention and MLP take turns
EMBED = {
    "cls_token": "global_tokens",
    "cls_pos_embed": "global_pos",
    "x_pos_embed": "row_pos",  # their x counts rows
    "y_pos_embed": "column_pos",
    "proj": "proj",
    "norm_embed": "norm",
}
ATTENTION = {
    "local_relative_position_bias_table": "bias_table",
    "g2l_relative_position_bias": "bias_g2l",
    "g2g_relative_position_bias": "bias_g2g",
}
SUB_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(\w+)\.?(.*)")


def convert(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Released weights (a ``net`` inside what training saved), or our own, as a state dict.

    Tables of another image or window size are resized. Released files list weights that local
    and global tokens share under both names; they are compared and kept once.

    Raises:
        OfframpError: when names or shapes do not fit.
    """
    state = unwrap(checkpoint)
    if any(name.startswith("layer") for name in state):
        state = {
            rename(name): tensor
            for name, tensor in state.items()
            if tensor.numel() and not name.endswith(".relative_position_index")
        }
    own = model.state_dict()
    state = {name: _resized(name, tensor, own) for name, tensor in state.items()}
    return strict(_without_twins(state, own), model)


def rename(name: str) -> str:
    """Our name of a tensor: ``layer2.1.attn.kv.bias`` → ``stages.1.blocks.0.attn.kv.bias``."""
    found = SUB_BLOCK.fullmatch(name)
    if found is None:
        return name
    stage, place, part, rest = int(found[1]) - 1, int(found[2]), found[3], found[4]
    if place == 0:
        names = ["patch_embed", EMBED.get(part, part), rest]
    else:
        if part == "norm":
            part = "norm1" if place % 2 else "norm2"
        names = ["blocks", str((place - 1) // 2), part, ATTENTION.get(rest, rest)]
    return ".".join(["stages", str(stage), *(n for n in names if n)])


def _resized(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """The tensor, as long as ours where it is a table."""
    ours = own.get(name)
    if ours is None or tensor.ndim != ours.ndim or tensor.shape == ours.shape:
        return tensor
    if name.endswith(("row_pos", "column_pos")):
        return resize_line(tensor, ours.shape[1])
    if name.endswith("bias_table"):
        before, after = isqrt(len(tensor)), isqrt(len(ours))
        if before**2 == len(tensor) and after**2 == len(ours):
            return resize_bias(tensor, (before, before), (after, after))
    return tensor


def _without_twins(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the global tokens' copies of weights that our model shares."""
    kept = {}
    for name, tensor in state.items():
        local = name.replace("_global.", ".")
        if name != local and name not in own and local in own and local in state:
            if not torch.equal(tensor, state[local]):
                raise OfframpError(
                    f"{name} differs from {local}: these weights are of a model with "
                    "share_global=False"
                )
            continue
        kept[name] = tensor
    return kept
