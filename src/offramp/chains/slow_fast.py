"""Slow-fast token evolution as pure functions: Evo-ViT's bookkeeping, for any backbone.

Xu et al., AAAI 2022, arXiv 2108.01390. A state is ``(x, rest, score, order)`` and, where a
representative token runs along, ``moved``:

- x (B, P + n, C) or (B, P + n + 1, C): prefix, slow patches, and last the representative token;
- rest (B, N − n, C): the placeholders, none ahead of the first selection;
- score (B, N), order (B, N): global class attention and raster position, slow patches first;
- moved (B, 1, C): what the representative token gained since the selection.
"""

import torch
from torch import Tensor

from offramp.chains.state import State


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Tokens ``index`` (B, n) of x (B, T, C) → (B, n, C).

    Whole rows of a flat (B·T, C) view: quicker than an element-wise gather, above all on CPU
    engines, and nothing waits for the host.
    """
    B, T, C = x.shape
    first = torch.arange(B, device=x.device).unsqueeze(1) * T
    picked = x.reshape(-1, C).index_select(0, (index + first).reshape(-1))
    return picked.reshape(B, index.shape[1], C)


def beginning(x: Tensor, prefix: int, *, fast: bool) -> State:
    """Tokens (B, P + N, C) in raster order → a state ahead of any selection."""
    patches = x[:, prefix:]
    order = torch.arange(patches.shape[1], device=x.device).expand(x.shape[0], -1)
    score = torch.zeros_like(patches[..., 0], dtype=torch.float32)
    state = (x, patches[:, :0], score, order)
    return (*state, torch.zeros_like(x[:, :1])) if fast else state


def everyone(state: State, prefix: int) -> Tensor:
    """All N patches in the state's order, placeholders moved as far as they are by now."""
    x, rest, score, _, *moved = state
    slow = x[:, prefix : prefix + score.shape[1] - rest.shape[1]]
    if rest.shape[1] == 0:
        return slow
    return torch.cat((slow, rest + moved[0] if moved else rest), 1)


def in_raster(state: State, prefix: int) -> Tensor:
    """All N patches back in raster order."""
    return rows(everyone(state, prefix), state[3].argsort(dim=1))


def mean_patch(state: State, prefix: int) -> Tensor:
    """The mean over all N patches, placeholders included, (B, C)."""
    x, rest, score, _, *moved = state
    N, waiting = score.shape[1], rest.shape[1]
    if waiting == 0:
        return x[:, prefix : prefix + N].mean(1)
    total = x[:, prefix : prefix + N - waiting].sum(1) + rest.sum(1)
    return (total + waiting * moved[0][:, 0] if moved else total) / N


def select(state: State, prefix: int, n: int) -> State:
    """Sort all patches by score, the best n to the blocks, the others to the rest.

    The representative token is the rest's sum, weighted by their share of the rest's score.
    """
    x, _, score, order, *moved = state
    best = score.argsort(dim=1, descending=True)
    patches = rows(everyone(state, prefix), best)
    score, order = score.gather(1, best), order.gather(1, best)
    rest, parts = patches[:, n:], [x[:, :prefix], patches[:, :n]]
    if moved:
        waiting = score[:, n:]
        weights = (waiting / waiting.sum(1, keepdim=True)).to(x.dtype)
        parts.append(weights.unsqueeze(1) @ rest)  # (B, 1, C)
        moved = [torch.zeros_like(moved[0])]
    return (torch.cat(parts, 1), rest, score, order, *moved)


def blend(score: Tensor, fresh: Tensor, t: float | Tensor) -> Tensor:
    """G ← (1 − t)·G + t·a for the patches with fresh attention a (B, n); the others keep theirs."""
    n = fresh.shape[1]
    return torch.cat(((1 - t) * score[:, :n] + t * fresh, score[:, n:]), 1)
