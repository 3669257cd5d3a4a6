"""Bipartite soft matching: which tokens are most alike, and merging them.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461, section 3. Pure
functions on tensors; they know no model. Behind the prefix, which takes no part, tokens at even
positions of the sequence are sources (A, a of them), those at odd ones targets (B, b of them).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from offramp.chains.slow_fast import rows


class Matching(NamedTuple):
    """What becomes of the sources.

    Shapes: ``kept`` (B, a − r) and ``merged`` (B, r), positions in the sequence, the first
    ascending; ``partner`` (B, r), the rank among the targets of the one a merged token joins.
    """

    kept: Tensor
    merged: Tensor
    partner: Tensor


def sides(prefix: int) -> tuple[int, int]:
    """The first source and the first target behind the prefix."""
    return prefix + prefix % 2, prefix + (prefix + 1) % 2


def room(tokens: int, prefix: int) -> int:
    """The most tokens that one matching can merge: half of what is not protected."""
    return (tokens - prefix) // 2


@torch.no_grad()
def bipartite_soft_matching(metric: Tensor, r: int, prefix: int = 1) -> Matching:
    """Match each source with the target most like it; the r best matched sources will merge.

    Args:
        metric: what likeness is read from (B, T, d), usually keys averaged over heads.
        r: how many tokens go, at most `room`.
        prefix: tokens at the front that neither merge nor are merged into.
    """
    source, target = sides(prefix)
    unit = F.normalize(metric.float(), dim=-1)
    likeness = unit[:, source::2] @ unit[:, target::2].transpose(1, 2)  # (B, a, b)
    best, partner = likeness.max(-1)
    order = best.argsort(dim=1, descending=True)
    merged, kept = order[:, :r], order[:, r:].sort(dim=1).values
    return Matching(source + 2 * kept, source + 2 * merged, partner.gather(1, merged))


def merge(x: Tensor, size: Tensor, matching: Matching, prefix: int = 1) -> tuple[Tensor, Tensor]:
    """Size-weighted means: x (B, T, C), size (B, T) → (B, T − r, C), (B, T − r).

    The order after it is prefix, kept sources, targets. Merged tokens are summed by a product with
    a small matrix: there are few, and the order of additions does not hang on the device.
    """
    kept, merged, partner = matching
    n, target = kept.shape[1], sides(prefix)[1]
    sources = rows(x, torch.cat((kept, merged), 1))  # (B, a, C)
    old = size[:, target::2]
    ranks = torch.arange(old.shape[1], device=x.device).unsqueeze(1)
    joins = (partner.unsqueeze(1) == ranks).to(size.dtype) * size.gather(1, merged).unsqueeze(1)
    new = old + joins.sum(-1)  # (B, b)
    share = (joins / new.unsqueeze(-1)).to(x.dtype)  # (B, b, r)
    targets = x[:, target::2] * (old / new).to(x.dtype).unsqueeze(-1) + share @ sources[:, n:]
    return (
        torch.cat((x[:, :prefix], sources[:, :n], targets), 1),
        torch.cat((size[:, :prefix], size.gather(1, kept), new), 1),
    )


def destinations(matching: Matching, tokens: int, prefix: int = 1) -> Tensor:
    """Where each of the ``tokens`` (T) positions is after `merge`, (B, T)."""
    kept, merged, partner = matching
    n, target = kept.shape[1], sides(prefix)[1]
    at = torch.arange(tokens, device=kept.device)
    ends = prefix + n
    targets = at[target::2].expand(kept.shape[0], -1)
    old = torch.cat((at[:prefix].expand(kept.shape[0], -1), kept, merged, targets), 1)
    new = torch.cat(
        (old[:, :prefix], at[prefix:ends].expand_as(kept), ends + partner,
         ends + at[: targets.shape[1]].expand_as(targets)), 1
    )  # fmt: skip
    return torch.zeros_like(old).scatter(1, old, new)


def follow(place: Tensor, where: Tensor, left: int) -> Tensor:
    """Patches' places (B, N) after positions moved to ``where`` (B, T); ``left`` means gone."""
    gone = torch.full_like(where[:, :1], left)
    return torch.cat((where, gone), 1).gather(1, place)
