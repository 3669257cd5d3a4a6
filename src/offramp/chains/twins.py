"""timm's Twins: SVT (windows and sub-sampled attention) and PCPVT (sub-sampled alone)."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.maps import any_size
from offramp.chains.shapes import state_shapes
from offramp.chains.state import Schema, State, Tokens, TokenSpec

Size = tuple[int, int]


class TwinsStep(nn.Module):
    """One block on a grid (H, W); x (B, H·W, C) → x."""

    def __init__(self, block: nn.Module, grid: Size) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Tensor) -> State:
        return (self.block(x, self.grid),)


class OpeningStep(nn.Module):
    """The first block of a stage and the convolution that adds positions behind it.

    Stages after the first merge patches before: x (B, H·W, C) → (B, H/2·W/2, C').

    Args:
        model: the Twins.
        stage: 0-based.
        before, grid: H, W ahead of the merging and behind it.
    """

    def __init__(self, model: Any, stage: int, before: Size, grid: Size) -> None:
        super().__init__()
        self.merges = stage > 0
        if self.merges:
            self.merge, self.drop = model.patch_embeds[stage], model.pos_drops[stage]
        self.block, self.position = model.blocks[stage][0], model.pos_block[stage]
        self.before, self.grid = before, grid

    def forward(self, x: Tensor) -> State:
        if self.merges:
            maps = x.unflatten(1, self.before).permute(0, 3, 1, 2).contiguous()
            x, _ = self.merge(maps)
            x = self.drop(x)
        x = self.block(x, self.grid)
        return (self.position(x, self.grid),)


class TwinsChain(Chain):
    """timm's Twins as a chain; the state is ``(x,)``, x (B, H·W, C).

    Positions come from convolutions, so a model runs at other sizes than it was built for.
    """

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: Size | None = None) -> None:
        model: Any = backbone
        size = any_size(backbone, image_size or model.patch_embeds[0].img_size)
        steps: list[nn.Module] = []
        specs: list[TokenSpec] = []
        before = size
        for k, (embed, blocks) in enumerate(zip(model.patch_embeds, model.blocks, strict=True)):
            grid = before[0] // embed.patch_size[0], before[1] // embed.patch_size[1]
            steps.append(OpeningStep(model, k, before, grid))
            steps += [TwinsStep(block, grid) for block in blocks[1:]]
            specs += [TokenSpec(int(model.embed_dims[k]), grid)] * len(blocks)
            before = grid
        super().__init__(backbone, steps)
        self.image_size, self._specs = size, specs
        self.in_chans, self.num_classes = int(model.in_chans), int(model.num_classes)
        state_shapes(self)  # raises where the maps become smaller than what pools them

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        x, _ = self._model.patch_embeds[0](images)
        return (self._model.pos_drops[0](x),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(self._model.norm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        return Tokens(patches=x, grid=self._specs[step].grid, prefix=x[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return int(self._model.blocks[-1][-1].attn.num_heads)


FAMILIES.register("twins")(
    Family(
        "timm Twins: SVT and PCPVT",
        lambda model: descends(model, "timm.models.twins", "Twins"),
        TwinsChain,
    )
)
