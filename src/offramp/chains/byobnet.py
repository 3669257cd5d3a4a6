"""timm's ByobNet: MobileViT v1, cut between its transformer blocks, v2 and convolutional kin.

A MobileViT v1 block (Mehta and Rastegari, arXiv:2110.02178) is a small transformer between
convolutions: the map is convolved, unfolded into P = 4 groups of patches (one per position inside
a 2×2 patch), run through L transformer blocks, folded back and fused with the map it came from.
Here it is L + 1 steps, one per transformer block and one for folding and fusion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.maps import MapChain, MapStep, map_tokens
from offramp.chains.state import Schema, State, Tokens, TokenSpec


@dataclass(frozen=True)
class Patching:
    """How a map (B, D, H, W) is cut into patches of ``patch`` pixels and put together again.

    Attributes:
        size: H, W of the map.
        patch: rows and columns of a patch.
    """

    size: tuple[int, int]
    patch: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """H, W rounded up to whole patches; the map is resized to it where they differ."""
        return (
            -(-self.size[0] // self.patch[0]) * self.patch[0],
            -(-self.size[1] // self.patch[1]) * self.patch[1],
        )

    def unfold(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) → tokens (B, P, N, D): P pixels of a patch, N patches."""
        if self.grid != self.size:
            x = F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)
        (rows, columns), (ph, pw) = self.grid, self.patch
        x = x.reshape(-1, x.shape[1], rows // ph, ph, columns // pw, pw)
        return x.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(1, 2)

    def fold(self, x: Tensor) -> Tensor:
        """Tokens (B, P, N, D) → the map on the grid (B, D, rows, columns)."""
        (rows, columns), (ph, pw) = self.grid, self.patch
        width = x.shape[-1]
        x = x.reshape(-1, ph, pw, rows // ph, columns // pw, width)
        x = x.permute(0, 5, 3, 1, 4, 2).reshape(-1, width, rows, columns)
        return x.contiguous()  # a grid of one patch would stay channels last: other kernels


class MobileViTStep(nn.Module):
    """One transformer block of a MobileViT block; the first one convolves and unfolds before it.

    (x, shortcut) → (x, shortcut): x becomes tokens (B, P, N, D), shortcut the map that came in.
    """

    def __init__(self, block: Any, index: int, patching: Patching) -> None:
        super().__init__()
        self.transformer = block.transformer[index]
        self.entry = nn.ModuleList([block.conv_kxk, block.conv_1x1] if index == 0 else [])
        self.patching = patching

    def forward(self, x: Tensor, shortcut: Tensor) -> State:
        if self.entry:
            shortcut = x
            for layer in self.entry:
                x = layer(x)
            x = self.patching.unfold(x)
        tokens = self.transformer(x.flatten(0, 1))  # (B·P, N, D)
        return tokens.unflatten(0, (-1, x.shape[1])), shortcut


class FusionStep(nn.Module):
    """What closes a MobileViT block: norm, fold, project, fuse with the map that came in."""

    def __init__(self, block: Any, patching: Patching) -> None:
        super().__init__()
        self.norm, self.project, self.fuse = block.norm, block.conv_proj, block.conv_fusion
        self.patching = patching

    def forward(self, x: Tensor, shortcut: Tensor) -> State:
        x = self.patching.fold(self.norm(x))
        if self.patching.grid != self.patching.size:
            x = F.interpolate(x, size=self.patching.size, mode="bilinear", align_corners=False)
        x = self.project(x)
        if self.fuse is not None:
            x = self.fuse(torch.cat((shortcut, x), dim=1))
        return x, nothing(x)


class BetweenStep(nn.Module):
    """Any other block of a MobileViT v1; no shortcut is open across it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, shortcut: Tensor) -> State:
        x = self.block(x)
        return x, nothing(x)


def nothing(x: Tensor) -> Tensor:
    """One number per sample (B, 1, 1, 1) where no shortcut is open: a state keeps its tensors."""
    return x[:, :1, :1, :1]


class ByobNetChain(MapChain):
    """timm's ByobNet as a chain; a step is one block, the state one map."""

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(backbone, [MapStep(block) for block in _blocks(backbone)], image_size)

    def embed(self, images: Tensor) -> State:
        model: Any = self.backbone
        return (model.stem(images),)

    def finish(self, *state: Tensor) -> Tensor:
        model: Any = self.backbone
        return model.forward_head(model.final_conv(state[0]))


class MobileViTChain(Chain):
    """MobileViT v1 as a chain; the state is ``(x, shortcut)``.

    Inside a MobileViT block x holds tokens (B, P, N, D) and the shortcut is the map the block will
    fuse them with; elsewhere x is a map (B, C, H, W). Exits inside a block see the folded map.
    """

    schema = Schema(backbone=("x", "shortcut"))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        whole = ByobNetChain(backbone, image_size)
        cuts = [
            cut
            for i, block in enumerate(_blocks(backbone))
            for cut in _cut(block, whole.token_spec(i))
        ]
        super().__init__(backbone, [step for step, _, _ in cuts])
        self.image_size = whole.image_size
        self.in_chans, self.num_classes = whole.in_chans, whole.num_classes
        self._specs = [spec for _, spec, _ in cuts]
        self._patchings = [patching for _, _, patching in cuts]

    def embed(self, images: Tensor) -> State:
        model: Any = self.backbone
        x = model.stem(images)
        return x, nothing(x)

    def finish(self, *state: Tensor) -> Tensor:
        model: Any = self.backbone
        return model.forward_head(model.final_conv(state[0]))

    def tokens(self, state: State, step: int) -> Tokens:
        x, patching = state[0], self._patchings[step]
        return map_tokens(x if patching is None else patching.fold(x), self._specs[step].grid)

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        last: Any = [block for block in _blocks(self.backbone) if _is_mobilevit_block(block)][-1]
        heads = int(last.transformer[-1].attn.num_heads)
        return heads if self._specs[-1].width % heads == 0 else 1


def _cut(block: Any, after: TokenSpec) -> Iterator[tuple[nn.Module, TokenSpec, Patching | None]]:
    """The steps of one block with their tokens, and how to fold them inside a MobileViT block."""
    if not _is_mobilevit_block(block):
        yield BetweenStep(block), after, None
        return
    assert after.grid is not None
    patching = Patching(after.grid, block.patch_size)
    inside = TokenSpec(block.conv_1x1.out_channels, patching.grid)
    for j in range(len(block.transformer)):
        yield MobileViTStep(block, j, patching), inside, patching
    yield FusionStep(block, patching), after, None


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    model: Any = backbone
    return [block for stage in model.stages for block in stage]


def _is_mobilevit_block(block: nn.Module) -> bool:
    from timm.models.mobilevit import MobileVitBlock

    return isinstance(block, MobileVitBlock)


def _build(model: nn.Module, image_size: tuple[int, int] | None) -> Chain:
    fine = any(_is_mobilevit_block(block) for block in _blocks(model))
    return (MobileViTChain if fine else ByobNetChain)(model, image_size)


FAMILIES.register("byobnet")(
    Family(
        "timm ByobNet: MobileViT v1 and v2, RepVGG, RegNet-Z, GERNet",
        lambda model: descends(model, "timm.models.byobnet", "ByobNet"),
        _build,
    )
)
