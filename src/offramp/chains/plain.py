"""What plain vision transformers share: one tensor of tokens, one width, one grid, to the end."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from offramp.chains.chain import Chain
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec

Size = tuple[int, int]


class Patches(NamedTuple):
    """The patch grid of a backbone bound to one image size."""

    image_size: Size
    grid: Size
    in_chans: int


def bind_patches(embed: Any, asked: Size | None, *, any_size: bool = False) -> Patches:
    """Bind timm's ``PatchEmbed`` to an image size; only ``any_size`` models take another."""
    size = bound_size(asked, embed.img_size, remedy=None if any_size else "img_size=…")
    rows, columns = embed.dynamic_feat_size(size)
    return Patches(size, (int(rows), int(columns)), first_convolution(embed).in_channels)


def first_convolution(module: nn.Module) -> nn.Conv2d:
    """The convolution that reads the image."""
    return next(part for part in module.modules() if isinstance(part, nn.Conv2d))


class PlainStep(nn.Module):
    """One block that needs nothing but its input; x (B, P + N, C) → x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (self.block(x),)


class PlainChain(Chain):
    """A plain transformer; the state is ``(x,)``, x (B, P + N, C) with P prefix tokens first.

    Width, classes and ``finish`` (``norm``, then ``forward_head``) are found as in timm's models.

    Args:
        backbone: the model.
        steps: one per block.
        patches: image size, grid and channels.
        prefix: class and register tokens ahead of the patches.
        class_tokens: how many of them a classifier reads.
        prefix_from: 0-based step whose output is the first to hold the prefix (class tokens that
            arrive late, as in CaiT).
    """

    schema = Schema(backbone=("x",))

    def __init__(
        self,
        backbone: nn.Module,
        steps: Sequence[nn.Module],
        patches: Patches,
        *,
        prefix: int,
        class_tokens: int,
        prefix_from: int = 0,
    ) -> None:
        super().__init__(backbone, steps)
        self.image_size, self.grid, self.in_chans = patches
        self.width, self.num_classes = self._widths()
        self._prefix, self._class_tokens, self._prefix_from = prefix, class_tokens, prefix_from

    @property
    def _model(self) -> Any:
        return self.backbone

    def _widths(self) -> tuple[int, int]:
        """C, the width of every token, and the number of classes."""
        return int(self._model.embed_dim), int(self._model.num_classes)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(self._model.norm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        late = step < self._prefix_from
        prefix = 0 if late else self._prefix
        return Tokens(x[:, prefix:], self.grid, x[:, :prefix], 0 if late else self._class_tokens)

    def token_spec(self, step: int) -> TokenSpec:
        late = step < self._prefix_from
        return TokenSpec(self.width, self.grid, 0 if late else self._class_tokens)

    @property
    def attention_heads(self) -> int:
        return int(self._model.blocks[-1].attn.num_heads)


class LateClassStep(nn.Module):
    """The first block that sees the class token: x (B, N, C) → (B, 1 + N, C), then ``step``."""

    def __init__(self, model: Any, step: nn.Module) -> None:
        super().__init__()
        self.step = step
        self._model = (model,)  # a tuple is not registered: the step stays a view of its block

    def forward(self, x: Tensor) -> State:
        return self.step(prepend_class(self._model[0], x))


def prepend_class(model: Any, x: Tensor) -> Tensor:
    """Patches (B, N, C) → (B, 1 + N, C) with the model's class token first."""
    return torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
