"""The zoo's Vision Longformer: a step is a block, and each stage has its own global tokens."""

from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class ViLStep(nn.Module):
    """One block; x (B, g + H·W, C) → x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (self.block(x),)


class OpeningStep(nn.Module):
    """The first block of a stage and the patch embedding ahead of it; (B, g + H·W, C) → (B, …, C').

    Args:
        before: tokens of the stage before.
    """

    def __init__(self, stage: Any, before: TokenSpec) -> None:
        super().__init__()
        self.patch_embed, self.block = stage.patch_embed, stage.blocks[0]
        self.before = before

    def forward(self, x: Tensor) -> State:
        patches = x[:, self.before.class_tokens :].transpose(1, 2)
        return (self.block(self.patch_embed(patches.unflatten(2, self.before.grid))),)


class ViLChain(Chain):
    """ViL as a chain; the state is ``(x,)``, x (B, g + H·W, C) of the current stage.

    Global tokens are what heads read as class tokens; the last stage of the published models has
    none. Patch embedding belongs to the first step of the next stage, so a head at a stage's end
    reads the larger map.
    """

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        steps: list[nn.Module] = []
        self._specs: list[TokenSpec] = []
        for stage in model.stages:
            width = int(stage.patch_embed.proj.out_channels)
            for j, block in enumerate(stage.blocks):
                opens = j == 0 and steps
                steps.append(OpeningStep(stage, self._specs[-1]) if opens else ViLStep(block))
                self._specs.append(TokenSpec(width, stage.grid, stage.num_globals))
        super().__init__(backbone, steps)
        self.image_size = bound_size(image_size, model.img_size)
        self.in_chans, self.num_classes = int(model.in_chans), int(model.num_classes)

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
        spec = self._specs[step]
        g = spec.class_tokens
        return Tokens(patches=x[:, g:], grid=spec.grid, prefix=x[:, :g], class_tokens=g)

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def attention_heads(self) -> int:
        return int(self._model.stages[-1].blocks[-1].attn.num_heads)


def _is_vil(model: nn.Module) -> bool:
    return descends(model, "offramp.zoo", "VisionLongformer")


FAMILIES.register("vil")(
    Family("ViL: sliding windows and global tokens in a pyramid", _is_vil, ViLChain)
)
