"""Swin of ``transformers`` for image classification."""

from typing import Any

import torch
from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.hf import IMAGENET, Logits, first, inner, pair, typed
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec

Size = tuple[int, int]


class HFSwinStep(nn.Module):
    """One layer; x (B, H·W, C) → x. Where a stage opens, ``before`` is the grid to be merged."""

    def __init__(self, block: nn.Module, grid: Size, merge: nn.Module | None, before: Size) -> None:
        super().__init__()
        self.block, self.merge = block, merge
        self.grid, self.before = grid, before

    def forward(self, x: Tensor) -> State:
        if self.merge is not None:
            x = self.merge(x, self.before)
        return (first(self.block(x, self.grid)),)


class HFSwinChain(Chain):
    """``SwinForImageClassification`` as a chain; the state is ``(x,)``, x (B, H·W, C).

    Patches are merged in the first step of a stage, so that heads see the wide map; transformers
    does it at the end of the stage before. Input defaults: ImageNet's mean and std, bicubic.
    """

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: Size | None = None) -> None:
        base = inner(backbone)
        embed = base.embeddings.patch_embeddings
        config = base.config
        size = bound_size(image_size, pair(config.image_size), remedy="image_size=… in its config")
        height, width = pair(embed.patch_size)
        grid = before = (-(-size[0] // height), -(-size[1] // width))  # it pads to whole patches
        steps: list[nn.Module] = []
        self._specs: list[TokenSpec] = []
        merge: nn.Module | None = None
        for number, stage in enumerate(base.encoder.layers):
            if merge is not None:
                before, grid = grid, ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            for block in stage.blocks:
                steps.append(HFSwinStep(block, grid, merge, before))
                self._specs.append(TokenSpec(int(config.embed_dim) * 2**number, grid))
                merge = None
            merge = stage.downsample
        super().__init__(backbone, steps)
        self.image_size, self.in_chans = size, int(config.num_channels)
        self.num_classes = int(self._model.num_labels)

    @property
    def _model(self) -> Any:
        return self.backbone

    @property
    def whole(self) -> nn.Module:
        return Logits(self.backbone)

    @property
    def input_defaults(self) -> dict[str, Any]:
        return IMAGENET

    def embed(self, images: Tensor) -> State:
        x, _ = inner(self._model).embeddings(typed(self._model, images))  # and the grid
        return (x,)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(inner(self._model).layernorm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        pooled = inner(self._model).pooler(x.transpose(1, 2))  # (B, C, 1)
        return self._model.classifier(torch.flatten(pooled, 1))

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        return Tokens(x, self._specs[step].grid, x[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return int(inner(self._model).config.num_heads[-1])


FAMILIES.register("hf_swin")(
    Family(
        "transformers Swin for image classification, as an object",
        lambda model: descends(model, "transformers", "SwinForImageClassification"),
        HFSwinChain,
    )
)
