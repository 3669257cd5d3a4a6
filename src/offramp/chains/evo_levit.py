"""The zoo's Evo-LeViT: its own state and steps, maps restored for heads that want them."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.slow_fast import in_raster
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class EvoLevitChain(Chain):
    """Evo-LeViT as a chain; the state is ``(x, rest, score, order, moved)``.

    What each is, `offramp.chains.slow_fast` says. The class token is an auxiliary one: the
    backbone's own classifiers read the mean patch, placeholders included.
    """

    schema = Schema(backbone=("x", "rest", "score", "order", "moved"))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        super().__init__(backbone, list(model.steps))
        self.image_size = bound_size(image_size, tuple(model.img_size))
        self.in_chans, self.num_classes = int(model.in_chans), int(model.num_classes)

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        return self._model.embed(images)

    def finish(self, *state: Tensor) -> Tensor:
        return self._model.finish(*state)

    def tokens(self, state: State, step: int) -> Tokens:
        spec = self.token_spec(step)
        return Tokens(in_raster(state, 1), spec.grid, state[0][:, :1], spec.class_tokens)

    def token_spec(self, step: int) -> TokenSpec:
        model = self._model
        width, grid = int(model.widths[step]), model.grids[step]
        return TokenSpec(width, grid, 1, heads=model.num_heads[model.embed_dim.index(width)])

    @property
    def classifier_heads(self) -> int:
        return 2

    @property
    def attention_heads(self) -> int:
        return int(self._model.num_heads[-1])


def _is_evo_levit(model: nn.Module) -> bool:
    return descends(model, "offramp.zoo.evo_levit", "EvoLevit")


FAMILIES.register("evo_levit")(
    Family("Evo-LeViT: LeViT with half of its patches waiting", _is_evo_levit, EvoLevitChain)
)
