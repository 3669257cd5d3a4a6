"""timm's LeViT family, in its linear form (``levit_*``) and its 1×1-convolution form.

Graham et al., "LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", ICCV 2021,
arXiv 2104.01136.
"""

from typing import Any

import torch
from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class LevitStep(nn.Module):
    """One block, or the shrinking attention that opens a stage; x → x.

    In evaluation mode timm caches each block's expanded attention biases. A cached bias would
    carry an old gradient graph into a new one, and a traced one would stay behind in the model,
    so the cache only serves where neither gradients nor a trace are recorded.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            return (self.block(x),)
        forget_biases(self.block)
        x = self.block(x)
        forget_biases(self.block)
        return (x,)


class LevitChain(Chain):
    """LeViT as a chain; the state is ``(x,)``, x (B, H·W, C), or (B, C, H, W) in the conv form.

    The attention that halves the grid between stages (sides rounded up) has an MLP of its own, so
    it is a step like any block. There are no class tokens: both classifiers read the mean token.
    """

    schema = Schema(backbone=("x",))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        stride = model.feature_info[0]["reduction"]  # of the stem
        rows, columns = next(
            m.resolution for m in model.stages.modules() if hasattr(m, "attention_biases")
        )
        size = bound_size(image_size, (rows * stride, columns * stride))
        steps, self._specs = [], []
        for stage, width in zip(model.stages, model.embed_dim, strict=True):
            blocks = list(stage.blocks)
            if not isinstance(stage.downsample, nn.Identity):
                rows, columns = -(-rows // 2), -(-columns // 2)
                blocks.insert(0, stage.downsample)
            steps += [LevitStep(block) for block in blocks]
            self._specs += [TokenSpec(int(width), (int(rows), int(columns)))] * len(blocks)
        super().__init__(backbone, steps)
        self.image_size = size
        self.in_chans = int(next(p for p in model.stem.parameters()).shape[1])
        self.num_classes = int(model.num_classes)
        self._conv = bool(model.use_conv)
        self._heads = next(
            int(m.num_heads)
            for m in reversed(list(model.stages.modules()))
            if hasattr(m, "attention_biases")
        )
        backbone.register_load_state_dict_post_hook(_forget_after_loading)

    def __getstate__(self) -> dict[str, Any]:
        forget_biases(self.backbone)  # a bias that hangs on a gradient graph cannot be copied
        return self.__dict__

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        x = self._model.stem(images)  # (B, C, H, W)
        return (x if self._conv else x.flatten(2).transpose(1, 2),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.forward_head(x)

    def tokens(self, state: State, step: int) -> Tokens:
        (x,) = state
        patches = x.flatten(2).transpose(1, 2) if self._conv else x  # (B, H·W, C)
        return Tokens(patches=patches, grid=self._specs[step].grid, prefix=patches[:, :0])

    def token_spec(self, step: int) -> TokenSpec:
        return self._specs[step]

    @property
    def classifier_heads(self) -> int:
        return 2 if hasattr(self._model, "head_dist") else 1

    @property
    def attention_heads(self) -> int:
        return self._heads


def forget_biases(module: nn.Module) -> None:
    """Empty timm's caches of expanded attention biases in a module."""
    part: Any
    for part in module.modules():
        if getattr(part, "attention_bias_cache", None):
            part.attention_bias_cache = {}


def _forget_after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    """New weights in evaluation mode: timm would go on with the biases of the old ones."""
    forget_biases(module)


def _is_levit(model: nn.Module) -> bool:
    return descends(model, "timm", "Levit")


FAMILIES.register("levit")(
    Family("timm LeViT, distilled or not, linear or convolutional form", _is_levit, LevitChain)
)
