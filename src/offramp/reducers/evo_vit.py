"""Evo-ViT: informative tokens evolve slowly and fully, placeholders wait or move as one.

Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022, arXiv
2108.01390.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.reduced import Reducer, TokenMap
from offramp.chains.slow_fast import beginning, blend, in_raster, mean_patch, select
from offramp.chains.state import State, Tokens, TokenSpec
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError
from offramp.reducers.block import attend, class_row, feed_forward
from offramp.reducers.evit import needs_class_token
from offramp.reducers.reducer import register_reducer, share

Selection = Literal["stage", "layer"]


@register_reducer("evo_vit")
class EvoViT(Reducer):
    """Evo-ViT: blocks work on the best-ranked tokens; the others stay as placeholders.

    Global class attention G ranks the patches: G ← (1 − t)·G + t·a, a the class token's attention
    summed over heads, t = 1 ahead of the first selection and 1 − alpha from there on. At a
    selection the best n = ⌊keep·N⌋ patches go on with the class token; the others are neither keys
    nor values and return to the ranking at the next selection, so nothing is lost and a map can
    always be restored. G of a token that waits keeps its value.

    The state is ``(x, rest, score, order)``: x (B, P + n, C), rest (B, N − n, C) the placeholders
    (none ahead of the first selection), score (B, N) is G and order (B, N) the raster positions,
    both in the order x, rest. With ``fast`` x ends with the representative token and ``moved``
    (B, 1, C) is what its blocks have added since the selection.

    The classifier reads the mean over all N patches with a norm and a head of its own, which start
    as copies of the backbone's; the backbone's head on the class token is the auxiliary one.

    Args:
        keep: keep ratio.
        start: first block (1-based) that works on selected tokens; default 5 of twelve.
        every: blocks per stage; default 4 of twelve.
        selection: once per ``stage``, or in every ``layer`` (as early in training).
        alpha: how much of G stays.
        fast: the representative token, a G-weighted sum of the placeholders, runs along, and what
            the blocks add to it is added to each of them. Off in the released DeiT variants.
        classifier: ``average``, or ``class``: the backbone's own, without new parameters.
    """

    tracks = False

    def __init__(
        self,
        chain: ViTChain,
        *,
        keep: float = 0.5,
        start: int | None = None,
        every: int | None = None,
        selection: Selection = "stage",
        alpha: float = 0.5,
        fast: bool = False,
        classifier: Literal["average", "class"] = "average",
    ) -> None:
        super().__init__(chain)
        needs_class_token("evo_vit", self)
        if selection not in ("stage", "layer"):
            raise OfframpError(f"evo_vit: selection = {selection!r} (use 'stage' or 'layer')")
        if classifier not in ("average", "class"):
            raise OfframpError(f"evo_vit: classifier = {classifier!r} (use 'average' or 'class')")
        third = max(1, self.depth // 3)
        self.first = (third + 1 if start is None else start) - 1
        if not 1 <= self.first < self.depth:
            raise OfframpError(
                f"evo_vit: start = {start}, but tokens can be selected ahead of blocks "
                f"2…{self.depth}"
            )
        self.every = third if every is None else every
        if self.every < 1:
            raise OfframpError(f"evo_vit: every = {every}, but a stage has at least one block")
        self.selection: Selection = selection
        self.n = int(self.patches * share("evo_vit: keep", keep) + 1e-9)
        if self.n < 1:
            raise OfframpError(f"evo_vit: keep = {keep} leaves none of {self.patches} patches")
        self.alpha, self.fast = alpha, fast
        self.names = ("rest", "score", "order", "moved") if fast else ("rest", "score", "order")
        self.norm: nn.Module | None = None
        self.head: nn.Module | None = None
        if classifier == "average":
            model: Any = chain.backbone
            self.norm, self.head = copy.deepcopy(model.norm), copy.deepcopy(model.head)

    @property
    def selects(self) -> list[int]:
        """Blocks (0-based) ahead of which tokens are selected."""
        if self.n == self.patches:
            return []
        step = self.every if self.selection == "stage" else 1
        return list(range(self.first, self.depth, step))

    @property
    def scored(self) -> list[int]:
        """Blocks whose class attention a later selection depends on."""
        selects, found, wanted = self.selects, [], False
        for i in reversed(range(self.depth)):
            wanted = wanted or i + 1 in selects
            if wanted:
                found.append(i)
            if i < self.first:  # t = 1 there: what came before is forgotten
                wanted = False
        return found[::-1]

    def start(self, x: Tensor) -> State:
        return beginning(x, self.prefix, fast=self.fast)

    def step(self, i: int, block: nn.Module, *state: Tensor) -> State:
        if i in self.selects:
            state = select(state, self.prefix, self.n)
        x, rest, score, order, *moved = state
        said = attend(block, x)
        if i in self.scored:
            n = self.patches - rest.shape[1]
            row = class_row(said).sum(1)[:, self.prefix : self.prefix + n]
            score = blend(score, row, 1.0 if i < self.first else 1 - self.alpha)
        x = x + said.branch
        mlp = feed_forward(block, x)
        if moved and self._begun(i):
            moved = [moved[0] + said.branch[:, -1:] + mlp[:, -1:]]
        return (x + mlp, rest, score, order, *moved)

    def _begun(self, i: int) -> bool:
        """Whether tokens have been selected by the end of block ``i``."""
        return bool(self.selects) and i >= self.first

    def intact(self, i: int) -> bool:
        return not self._begun(i)

    def finish(self, chain: Chain, *state: Tensor) -> Tensor:
        if self.norm is None or self.head is None:
            return self.auxiliary(chain, *state)
        return self.head(self.norm(self.mean(state)))

    def classify(self, chain: Chain, *state: Tensor) -> Tensor:
        return chain.classify(state[0]) if self.head is None else self.head(self.mean(state))

    def auxiliary(self, chain: Chain, *state: Tensor) -> Tensor:
        """What the backbone's own classifier says of the class token."""
        return chain.finish(state[0][:, : self.prefix + self.n])

    def mean(self, state: State) -> Tensor:
        """The mean over all N patches, placeholders included, (B, C)."""
        return mean_patch(state, self.prefix)

    def tokens(self, state: State, i: int) -> Tokens:
        patches = in_raster(state, self.prefix) if self._begun(i) else state[0][:, self.prefix :]
        prefix = state[0][:, : self.prefix]
        return Tokens(patches, self.spec.grid, prefix, self.spec.class_tokens)

    def token_spec(self, i: int) -> TokenSpec:
        return self.spec

    def token_map(self, state: State, i: int) -> TokenMap:
        token = state[3].argsort(dim=1)
        waiting = token >= self.n if self._begun(i) else torch.zeros_like(token, dtype=torch.bool)
        return TokenMap(token, waiting)
