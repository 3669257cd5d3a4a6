"""timm's PoolingVisionTransformer class (PiT): a ViT whose patches are pooled between stages."""

from typing import Any

from torch import Tensor, cat, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec

Size = tuple[int, int]


class PitStep(nn.Module):
    """One block; x (B, T + N, C) → x.

    Args:
        block: the transformer block.
        tokens: T, class tokens ahead of the patches.
        stage: for the first block of a stage: its pooling (none in the first stage) and norm.
        grid: the patches' grid ahead of the pooling.
    """

    def __init__(self, block: nn.Module, tokens: int, stage: Any, grid: Size) -> None:
        super().__init__()
        self.block, self.tokens, self.grid = block, tokens, grid
        self.pool = None if stage is None else stage.pool
        self.norm = None if stage is None else stage.norm

    def forward(self, x: Tensor) -> State:
        if self.pool is not None:
            maps = x[:, self.tokens :].transpose(1, 2).unflatten(2, self.grid)
            maps, classes = self.pool(maps, x[:, : self.tokens])  # (B, C', H', W'), (B, T, C')
            x = cat((classes, maps.flatten(2).transpose(1, 2)), dim=1)
        if self.norm is not None:
            x = self.norm(x)
        return (self.block(x),)


class PitChain(Chain):
    """timm's PoolingVisionTransformer as a chain; x (B, T + N, C), where a stage opens N falls and
    C grows. A stage's pooling runs in its first step."""

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: Size | None = None) -> None:
        model: Any = backbone
        grid: Size = tuple(model.patch_embed.grid_size)
        self._tokens = int(model.num_tokens)
        steps, self._specs = [], []
        for stage in model.transformers:
            before = grid
            if stage.pool is not None:
                grid = _pooled(stage.pool.conv, grid)
            width = int(stage.blocks[0].norm1.normalized_shape[0])
            for i, block in enumerate(stage.blocks):
                steps.append(PitStep(block, self._tokens, None if i else stage, before))
                self._specs.append(TokenSpec(width, grid, self._tokens))
        super().__init__(backbone, steps)
        self.image_size = bound_size(image_size, model.patch_embed.img_size)
        self.in_chans = int(model.patch_embed.conv.in_channels)
        self.num_classes = int(model.num_classes)

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        model = self._model
        maps = model.pos_drop(model.patch_embed(images) + model.pos_embed)  # (B, C, H, W)
        classes = model.cls_token.expand(maps.shape[0], -1, -1)
        return (cat((classes, maps.flatten(2).transpose(1, 2)), dim=1),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(self._model.norm(x[:, : self._tokens]))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x[:, : self._tokens])

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        T = self._tokens
        return Tokens(x[:, T:], self._specs[step].grid, x[:, :T], class_tokens=T)

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def classifier_heads(self) -> int:
        return self._tokens

    @property
    def attention_heads(self) -> int:
        return int(self._model.transformers[-1].blocks[-1].attn.num_heads)


def _pooled(conv: Any, grid: Size) -> Size:
    """The grid behind a strided convolution."""
    rows, columns = (
        (n + 2 * p - k) // s + 1
        for n, p, k, s in zip(grid, conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    return rows, columns


FAMILIES.register("pit")(
    Family(
        "timm PoolingVisionTransformer: PiT, also distilled",
        lambda model: descends(model, "timm.models.pit", "PoolingVisionTransformer"),
        PitChain,
    )
)
