"""A chain whose steps carry fewer tokens: a reducer between the backbone's blocks and the state."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError


class TokenMap(NamedTuple):
    """Where an image's patches are after a step; both (B, N) in raster order of the patches.

    Attributes:
        token: number, among the tokens behind the prefix, of the one that holds the patch; −1
            where none does.
        shared: whether that token stands for other patches too, or was computed for none of them.
    """

    token: Tensor
    shared: Tensor

    @property
    def gone(self) -> Tensor:
        return self.token < 0


class Reducer(nn.Module, ABC):
    """What makes a ViT's blocks carry fewer tokens.

    It owns its own parameters only: chain and blocks are handed to it. How many tokens are left
    after a step depends on the step alone, never on the image, so that segments can be compiled.
    Its bookkeeping rides in the state behind x.

    Attributes:
        names: of the bookkeeping tensors in the state, batch first.
        tracking: also keep where every patch went, as the last tensor, ``place (B, N)``.
        prefix, patches: how many tokens stand ahead of the patches, and how many patches there are.
    """

    names: tuple[str, ...] = ()
    tracks: bool = True
    """Whether ``tracking`` adds anything; False where the bookkeeping says it all."""

    @classmethod
    def strengths(cls, chain: Chain) -> dict[str, list[float]]:
        """The option that says how many tokens go, and values worth trying, gentlest first; the
        first one leaves nothing out. Empty where no single number says it."""
        return {"keep": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]}

    def __init__(self, chain: ViTChain) -> None:
        super().__init__()
        check_blocks(chain)
        model: Any = chain.backbone
        self.tracking = False
        self.depth, self.spec = len(chain), chain.token_spec(0)
        self.prefix, self.patches = int(model.num_prefix_tokens), self.spec.patches

    @property
    def state(self) -> tuple[str, ...]:
        return (*self.names, "place") if self.tracking and self.tracks else self.names

    @abstractmethod
    def start(self, x: Tensor) -> State:
        """The embedded tokens (B, P + N, C) → the first state, without ``place``."""

    @abstractmethod
    def step(self, i: int, block: nn.Module, *state: Tensor) -> State:
        """Block ``i`` (0-based) on a state."""

    def finish(self, chain: Chain, *state: Tensor) -> Tensor:
        """The last state → logits."""
        return chain.finish(state[0])

    def classify(self, chain: Chain, *state: Tensor) -> Tensor:
        """`finish` without the final norm."""
        return chain.classify(state[0])

    @abstractmethod
    def intact(self, i: int) -> bool:
        """Whether all patches still stand in raster order after block ``i``."""

    def tokens(self, state: State, i: int) -> Tokens:
        """What a head after block ``i`` reads."""
        x, spec = state[0], self.token_spec(i)
        return Tokens(x[:, self.prefix :], spec.grid, x[:, : self.prefix], spec.class_tokens)

    def token_spec(self, i: int) -> TokenSpec:
        return self.spec if self.intact(i) else self.spec._replace(grid=None)

    def token_map(self, state: State, i: int) -> TokenMap:
        """Where the patches are, from a state that was tracked."""
        place, left = state[-1], state[0].shape[1]
        token = torch.where(place < left, place - self.prefix, -1)
        mates = (token.unsqueeze(1) == token.unsqueeze(2)).sum(-1)  # (B, N)
        return TokenMap(token, (mates > 1) | (token < 0))


def check_blocks(chain: Chain) -> None:
    """Raise `OfframpError` unless every block is timm's plain pre-norm block."""
    problem = None
    if not isinstance(chain, ViTChain):
        problem = f"{type(chain.backbone).__name__} is none"
    else:
        for number, step in enumerate(chain.steps, 1):
            block: Any = step.block
            if type(block).__name__ != "Block" or getattr(block.attn, "gate", None) is not None:
                problem = f"block {number} is a {type(block).__name__} with {type(block.attn)}"
                break
            if type(block.attn).__name__ != "Attention":
                problem = f"block {number} has {type(block.attn).__name__}"
                break
    if problem:
        raise OfframpError(
            f"token reducers work on timm's plain ViT and DeiT blocks, but {problem}"
        )


class ReducedStep(nn.Module):
    """One block under a reducer; ``(x, *bookkeeping) -> (x, *bookkeeping)``."""

    def __init__(self, reducer: Reducer, index: int, block: nn.Module) -> None:
        super().__init__()
        self.reducer, self.index, self.block = reducer, index, block

    def forward(self, *state: Tensor) -> State:
        return self.reducer.step(self.index, self.block, *state)


class ReducedChain(Chain):
    """A ViT's chain whose steps go through a reducer.

    ``whole`` stays the untouched backbone, so every cost and time is held against it; `undivided`
    is what runs. Parameters are the backbone's, under their own names, and ``reducer.*``.
    """

    def __init__(self, base: ViTChain, reducer: Reducer) -> None:
        steps: list[Any] = list(base.steps)
        super().__init__(
            base.backbone, [ReducedStep(reducer, i, step.block) for i, step in enumerate(steps)]
        )
        self.reducer = reducer
        self._base = (base,)  # a tuple is not registered: the backbone is listed once
        self.image_size, self.in_chans = base.image_size, base.in_chans
        self.num_classes = base.num_classes
        self.schema = Schema(backbone=base.schema.backbone, reducer=reducer.state)

    @property
    def base(self) -> ViTChain:
        """The chain without the reducer."""
        return self._base[0]

    @property
    def whole(self) -> nn.Module:
        return self.base.whole

    @property
    def undivided(self) -> nn.Module:
        return self

    @property
    def input_defaults(self) -> dict[str, Any]:
        return self.base.input_defaults

    def embed(self, images: Tensor) -> State:
        (x,) = self.base.embed(images)
        state = self.reducer.start(x)
        if "place" in self.schema.reducer:
            here = torch.arange(self.reducer.prefix, x.shape[1], device=x.device)
            state = (*state, here.expand(x.shape[0], -1))
        return state

    def finish(self, *state: Tensor) -> Tensor:
        return self.reducer.finish(self.base, *state)

    def classify(self, *state: Tensor) -> Tensor:
        return self.reducer.classify(self.base, *state)

    def tokens(self, state: State, step: int) -> Tokens:
        return self.reducer.tokens(state, step)

    def token_spec(self, step: int) -> TokenSpec:
        return self.reducer.token_spec(step)

    @property
    def classifier_heads(self) -> int:
        return self.base.classifier_heads

    @property
    def attention_heads(self) -> int:
        return self.base.attention_heads
