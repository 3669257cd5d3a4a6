"""The zoo's CCT: a step is a block, and there is no class token."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class CCTStep(nn.Module):
    """One block; x (B, N, C) → x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (self.block(x),)


class CCTChain(Chain):
    """The zoo's CCT as a chain; the state is ``(x,)``, x (B, H·W, C) in raster order."""

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        blocks: Any = backbone.blocks
        super().__init__(backbone, [CCTStep(block) for block in blocks])
        model = self._model
        self.image_size = bound_size(image_size, model.img_size)
        self.in_chans = int(model.in_chans)
        self.num_classes = int(model.num_classes)
        self.grid: tuple[int, int] = model.grid_size

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        return (self._model.forward_embed(images),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(self._model.norm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        return Tokens(patches=x, grid=self.grid, prefix=x[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return TokenSpec(int(self._model.embed_dim), self.grid)

    @property
    def attention_heads(self) -> int:
        return int(self._model.blocks[-1].attn.num_heads)


def _is_cct(model: nn.Module) -> bool:
    from offramp.zoo.cct import CCT

    return isinstance(model, CCT)


FAMILIES.register("cct")(
    Family("CCT: convolved patches, no class token, sequence pooling", _is_cct, CCTChain)
)
