"""Plain ViTs of ``transformers``: ViT, DeiT and DINOv2 for image classification."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Family, descends
from offramp.chains.hf import HALF, IMAGENET, Logits, first, inner, pair, typed
from offramp.chains.image_size import bound_size
from offramp.chains.plain import Patches, PlainChain
from offramp.chains.state import State


class HFStep(nn.Module):
    """One layer; x (B, P + N, C) → x."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> State:
        return (first(self.block(x)),)


class HFViTChain(PlainChain):
    """``ViTForImageClassification`` as a chain; its classifier reads the class token.

    Input defaults are those of its image processor: mean and std 0.5, bilinear.
    """

    special_tokens = 1  # ahead of the patches
    read_tokens = 1  # of these, what the classifiers read
    any_size = False
    defaults: ClassVar[dict[str, Any]] = HALF

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        base = inner(backbone)
        blocks = base.layers if hasattr(base, "layers") else base.encoder.layer
        embed = base.embeddings.patch_embeddings
        remedy = None if self.any_size else "image_size=… in its config"
        size = bound_size(image_size, pair(embed.image_size), remedy=remedy)
        side = pair(embed.patch_size)
        super().__init__(
            backbone,
            [HFStep(block) for block in blocks],
            Patches(size, (size[0] // side[0], size[1] // side[1]), int(embed.num_channels)),
            prefix=self.special_tokens,
            class_tokens=self.read_tokens,
        )

    def _widths(self) -> tuple[int, int]:
        return int(self._model.config.hidden_size), int(self._model.num_labels)

    @property
    def whole(self) -> nn.Module:
        return Logits(self.backbone)

    @property
    def input_defaults(self) -> dict[str, Any]:
        return self.defaults

    def embed(self, images: Tensor) -> State:
        return (inner(self._model).embeddings(typed(self._model, images)),)

    def finish(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self.classify(inner(self._model).layernorm(x))

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        return self._model.classifier(x[:, 0])

    @property
    def attention_heads(self) -> int:
        return int(self._model.config.num_attention_heads)


class HFDeiTChain(HFViTChain):
    """``DeiTForImageClassification`` as a chain: a distillation token that no classifier reads.

    Input defaults: ImageNet's mean and std, bicubic, 224 of 256 pixels.
    """

    special_tokens = 2
    defaults: ClassVar[dict[str, Any]] = IMAGENET | {"crop_pct": 0.875}


class HFDeiTWithTeacherChain(HFDeiTChain):
    """``DeiTForImageClassificationWithTeacher`` as a chain: two classifiers, averaged."""

    read_tokens = 2

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        model = self._model
        return (model.cls_classifier(x[:, 0]) + model.distillation_classifier(x[:, 1])) / 2

    @property
    def classifier_heads(self) -> int:
        return 2


class HFDinov2Chain(HFViTChain):
    """``Dinov2ForImageClassification`` as a chain, for any image size.

    Its classifier reads the class token and the mean patch. Input defaults as for DeiT.
    """

    any_size = True
    defaults: ClassVar[dict[str, Any]] = HFDeiTChain.defaults

    def classify(self, *state: Tensor) -> Tensor:
        (x,) = state
        pooled = torch.cat((x[:, 0], x[:, 1:].mean(dim=1)), dim=1)
        return self._model.classifier(pooled)


CHAINS = {
    "ViTForImageClassification": HFViTChain,
    "DeiTForImageClassification": HFDeiTChain,
    "DeiTForImageClassificationWithTeacher": HFDeiTWithTeacherChain,
    "Dinov2ForImageClassification": HFDinov2Chain,
}


def _build(model: nn.Module, image_size: tuple[int, int] | None) -> HFViTChain:
    name = next(name for name in CHAINS if descends(model, "transformers", name))
    return CHAINS[name](model, image_size)


FAMILIES.register("hf_vit")(
    Family(
        "transformers ViT, DeiT and DINOv2 for image classification, as objects",
        lambda model: descends(model, "transformers", *CHAINS),
        _build,
    )
)
