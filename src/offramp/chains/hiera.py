"""timm's Hiera, whose tokens flow in the order in which they will be pooled."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.errors import OfframpError


class HieraStep(nn.Module):
    """One block, which pools where a stage begins; x (B, N, C) → x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (self.block(x),)


class HieraChain(Chain):
    """timm's Hiera as a chain; the state is ``(x,)``, x (B, N, C) in unrolled order.

    Unrolled: the tokens of a pooling window lie N/4 apart, so pooling is a maximum over a
    dimension. Heads get them rolled back to raster order.
    """

    schema = Schema(backbone=("x",))
    resample_rows: Tensor
    resample_columns: Tensor

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        super().__init__(backbone, [HieraStep(block) for block in model.blocks])
        rows, columns = model.tokens_spatial_shape
        unit = tuple(s * u for s, u in zip(model.patch_stride, model.mask_unit_size, strict=True))
        native = rows * model.patch_stride[0], columns * model.patch_stride[1]
        self.image_size = bound_size(image_size, native)
        if native[0] % unit[0] or native[1] % unit[1]:
            raise OfframpError(
                f"Hiera attends within windows of {unit} pixels, which do not divide {native}: "
                "choose an image_size that is a multiple"
            )
        if model.patch_drop_rate:
            raise OfframpError(
                f"patch_drop_rate = {model.patch_drop_rate} leaves holes in the map that exits "
                "read (build Hiera with patch_drop_rate=0)"
            )
        self.in_chans, self.num_classes = int(model.in_chans), int(model.num_classes)
        self._resampled = model.pos_embed_win is not None
        if self._resampled:
            sides = zip(model.pos_embed.shape[2:], model.tokens_spatial_shape, strict=True)
            by_rows, by_columns = (resampling(*side).to(model.pos_embed) for side in sides)
            self.register_buffer("resample_rows", by_rows, persistent=False)
            self.register_buffer("resample_columns", by_columns, persistent=False)
        self._specs = [
            TokenSpec(int(block.dim_out), tuple(model.reroll.schedule[i][1]))
            for i, block in enumerate(model.blocks)
        ]

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        model = self._model
        x = model.patch_embed(images)
        if self._resampled and torch.compiler.is_exporting():
            x = x + self._positions()
        else:
            x = model._pos_embed(x)
        return (model.unroll(x),)

    def _positions(self) -> Tensor:
        """The position table (1, N, C), resampled by two products: engines lack that operator."""
        model = self._model
        table = self.resample_rows @ model.pos_embed @ self.resample_columns.T
        table = table + model.pos_embed_win.tile(model.mask_spatial_shape)
        return table.flatten(2).transpose(1, 2)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        patches = self._model.reroll(state[0], step).flatten(1, 2)
        return Tokens(patches=patches, grid=self._specs[step].grid, prefix=patches[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return int(self._model.blocks[-1].attn.heads)


def resampling(before: int, after: int) -> Tensor:
    """The matrix (after, before) of timm's resampling of positions, antialiased and bicubic."""
    unit = torch.eye(before)[None, None]
    return F.interpolate(unit, size=(after, before), mode="bicubic", antialias=True)[0, 0]


FAMILIES.register("hiera")(
    Family("timm Hiera", lambda model: descends(model, "timm.models.hiera", "Hiera"), HieraChain)
)
