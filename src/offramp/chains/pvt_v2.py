"""timm's PyramidVisionTransformerV2: PVT v2 b0…b5."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.maps import any_size
from offramp.chains.shapes import state_shapes
from offramp.chains.state import Schema, State, Tokens, TokenSpec

Size = tuple[int, int]


class PVTStep(nn.Module):
    """One block on a grid (H, W), x (B, H·W, C) → x; its stage's edges belong to it.

    Args:
        stage: the stage of the block.
        index: the block in it; the first one merges patches, the last one ends with the norm.
        before, grid: H, W ahead of the merging and behind it.
    """

    def __init__(self, stage: Any, index: int, before: Size, grid: Size) -> None:
        super().__init__()
        self.block = stage.blocks[index]
        self.merge = stage.downsample if index == 0 else None
        self.norm = stage.norm if index == len(stage.blocks) - 1 else None
        self.before, self.grid = before, grid

    def forward(self, x: Tensor) -> State:
        if self.merge is not None:
            x = self.merge(as_map(x, self.before)).flatten(1, 2)
        x = self.block(x, self.grid)
        if self.norm is not None:
            x = self.norm(x)
        return (x,)


def as_map(x: Tensor, grid: Size) -> Tensor:
    """Tokens (B, H·W, C) → (B, C, H, W)."""
    return x.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()


class PVTChain(Chain):
    """timm's PVT v2 as a chain, for images of any size; the state is ``(x,)``, x (B, H·W, C)."""

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: Size | None = None) -> None:
        model: Any = backbone
        size = any_size(backbone, image_size)
        before = grid = strided(model.patch_embed.proj, size)
        steps: list[nn.Module] = []
        specs: list[TokenSpec] = []
        for stage in model.stages:
            if stage.downsample is not None:
                before, grid = grid, strided(stage.downsample.proj, grid)
            depth, width = len(stage.blocks), int(stage.blocks[0].attn.dim)
            steps += [PVTStep(stage, j, before, grid) for j in range(depth)]
            specs += [TokenSpec(width, grid)] * depth
        super().__init__(backbone, steps)
        self.image_size, self._specs = size, specs
        self.in_chans, self.num_classes = int(model.in_chans), int(model.num_classes)
        state_shapes(self)  # raises where the maps become smaller than what pools them

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        return (self._model.patch_embed(images).flatten(1, 2),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,), grid = state, self._specs[-1].grid
        assert grid is not None
        return self._model.forward_head(as_map(x, grid))

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        return Tokens(patches=x, grid=self._specs[step].grid, prefix=x[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return int(self._model.stages[-1].blocks[-1].attn.num_heads)


def strided(conv: Any, size: Size) -> Size:
    """H, W behind a convolution: floor((n + 2p − k) / s) + 1."""
    rows, columns = (
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(size, conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    return rows, columns


FAMILIES.register("pvt_v2")(
    Family(
        "timm PVT v2",
        lambda model: descends(model, "timm.models.pvt_v2", "PyramidVisionTransformerV2"),
        PVTChain,
    )
)
