"""A ViT's chain whose blocks also show what happens inside them, for heads that read it there."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.chains.vit import ViTChain
from offramp.errors import OfframpError

Tap = Literal["block", "attention", "ffn"]
"""What a head reads: the block's output, its attention's output, its FFN's hidden activation."""


class TappedStep(nn.Module):
    """One pre-norm block; x → (x, tap), or x alone where nothing is tapped.

    The tap holds the class tokens and the mean patch of what it reads, (B, T + 1, W): whole token
    maps would double what segments hand on.

    Args:
        block: timm's ``Block``; it is computed operation by operation, bit for bit as it does.
        tap: where to look.
        prefix, class_tokens: tokens ahead of the patches, and how many of them a classifier reads.
    """

    def __init__(self, block: nn.Module, tap: Tap, prefix: int, class_tokens: int) -> None:
        super().__init__()
        self.block, self.tap = block, tap
        self.prefix, self.class_tokens = prefix, class_tokens

    def forward(self, x: Tensor, *before: Tensor) -> State:
        """Tokens, and what the block before was tapped for, which ends here."""
        block: Any = self.block
        if self.tap == "block":
            return (block(x),)
        attended = block.attn(block.norm1(x))
        x = x + block.drop_path1(block.ls1(attended))
        mlp = block.mlp
        hidden = mlp.act(mlp.fc1(block.norm2(x)))  # (B, P + N, 4C)
        x = x + block.drop_path2(block.ls2(mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(hidden))))))
        return x, self.summary(attended if self.tap == "attention" else hidden)

    def summary(self, read: Tensor) -> Tensor:
        """(B, P + N, W) → class tokens and mean patch (B, T + 1, W)."""
        mean = read[:, self.prefix :].mean(dim=1, keepdim=True)
        return torch.cat([read[:, : self.class_tokens], mean], dim=1)

    @property
    def width(self) -> int:
        """W of what is tapped inside the block."""
        block: Any = self.block
        return int(
            block.mlp.fc1.out_features if self.tap == "ffn" else block.attn.proj.out_features
        )


class TappedChain(Chain):
    """A ViT's chain whose state carries, behind a tapped block, what its head reads."""

    def __init__(self, base: ViTChain, taps: Mapping[int, Tap]) -> None:
        spec: TokenSpec = base.token_spec(0)
        backbone: Any = base.backbone
        prefix = int(backbone.num_prefix_tokens)
        steps: list[Any] = list(base.steps)
        super().__init__(
            base.backbone,
            [
                TappedStep(step.block, taps.get(number, "block"), prefix, spec.class_tokens)
                for number, step in enumerate(steps, 1)
            ],
        )
        self._base = (base,)  # a tuple is not registered: the backbone is listed once
        self.schema = base.schema
        self.image_size, self.in_chans = base.image_size, base.in_chans
        self.num_classes = base.num_classes

    def embed(self, images: Tensor) -> State:
        return self._base[0].embed(images)

    def finish(self, *state: Tensor) -> Tensor:
        return self._base[0].finish(state[0])

    def classify(self, *state: Tensor) -> Tensor:
        return self._base[0].classify(state[0])

    def _tapped(self, step: int) -> TappedStep | None:
        """The step, if its inside is read."""
        if step < 0:
            return None
        found = self.steps[step]
        assert isinstance(found, TappedStep)
        return None if found.tap == "block" else found

    def schema_after(self, step: int) -> Schema:
        names = self.schema.backbone
        return Schema(backbone=(*names, "tap")) if self._tapped(step) else self.schema

    def tokens(self, state: State, step: int) -> Tokens:
        found = self._tapped(step)
        if found is None:
            return self._base[0].tokens(state, step)
        tap = state[1]
        return Tokens(tap[:, -1:], None, tap[:, :-1], found.class_tokens)

    def token_spec(self, step: int) -> TokenSpec:
        found, spec = self._tapped(step), self._base[0].token_spec(step)
        return spec if found is None else spec._replace(width=found.width, grid=None)

    @property
    def classifier_heads(self) -> int:
        return self._base[0].classifier_heads

    @property
    def attention_heads(self) -> int:
        return self._base[0].attention_heads


def tapped(links: Chain, taps: Mapping[int, Tap]) -> Chain:
    """The chain with these taps by 1-based block; itself where every head reads block outputs.

    Raises:
        OfframpError: where a tapped block is not timm's plain pre-norm block.
    """
    wanted = {number: tap for number, tap in taps.items() if tap != "block"}
    if not wanted:
        return links
    if not isinstance(links, ViTChain):
        raise OfframpError(
            f"tap = {next(iter(wanted.values()))!r} looks into the plain blocks of timm's ViT and "
            f"DeiT, not into those of {type(links).__name__} (use 'block')"
        )
    for number, tap in wanted.items():
        if 1 <= number <= len(links):
            block: Any = links.steps[number - 1].block
            if type(block).__name__ != "Block" or type(block.mlp).__name__ != "Mlp":
                raise OfframpError(
                    f"tap = {tap!r} looks into timm's plain Block with Mlp, but block {number} is "
                    f"{type(block).__name__} with {type(block.mlp).__name__} (use 'block')"
                )
    return TappedChain(links, wanted)
