"""timm's CrossViT family: two branches with small and large patches that exchange class tokens.

Chen, Fan, Panda, "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image
Classification", ICCV 2021, arXiv 2103.14899.
"""

from typing import Any

import torch
from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec


class SmallStep(nn.Module):
    """One block of the small-patch branch; (small, large) → (small, large)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, small: Tensor, large: Tensor) -> State:
        return self.block(small), large


class LargeStep(nn.Module):
    """One block of the large-patch branch; (small, large) → (small, large)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, small: Tensor, large: Tensor) -> State:
        return small, self.block(large)


class FusionStep(nn.Module):
    """Each branch's class token looks at the other's patches; (small, large) → (small, large).

    With f_b, g_b the projections to the other branch's width and back:
    cls_b ← g_b(fusion_b([f_b(cls_b), patches of the other branch])₀); patches stay.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.out, self.fusion, self.back = block.projs, block.fusion, block.revert_projs

    def forward(self, small: Tensor, large: Tensor) -> State:
        branches = (small, large)
        fused = []
        for b, own in enumerate(branches):
            query = self.out[b](own[:, 0:1])  # (B, 1, C of the other)
            seen = torch.cat((query, branches[1 - b][:, 1:]), dim=1)
            answer = self.back[b](self.fusion[b](seen)[:, 0:1])  # (B, 1, C)
            fused.append(torch.cat((answer, own[:, 1:]), dim=1))
        return tuple(fused)


class CrossViTChain(Chain):
    """CrossViT as a chain; the state is ``(small, large)``, each (B, 1 + N, C) of its branch.

    Each of the K multi-scale blocks becomes the large branch's blocks, then the small branch's,
    then the fusion. Heads always read the large branch, class token and patches: it does most of
    the work between two fusions, and one grid and width serve every exit. The branches do not
    meet before the fusion, so their order is free; with the large one first an exit among its
    blocks does not wait for small patches it will not read. What a head would read after a small
    step is what it would have read before it: put exits elsewhere.
    """

    schema = Schema(backbone=("small", "large"))

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        steps: list[nn.Module] = []
        for block in model.blocks:
            small, large = block.blocks
            steps += [LargeStep(inner) for inner in large]
            steps += [SmallStep(inner) for inner in small]
            steps.append(FusionStep(block))
        super().__init__(backbone, steps)
        self.image_size = bound_size(image_size, model.img_size)
        self.in_chans = int(model.in_chans)
        self.num_classes = int(model.num_classes)
        embed = model.patch_embed[1]
        rows, columns = (
            side // patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)
        )
        self._spec = TokenSpec(int(model.embed_dim[1]), (rows, columns), class_tokens=1)
        self._heads = int(model.blocks[-1].blocks[1][-1].attn.num_heads)

    @property
    def _model(self) -> Any:
        return self.backbone

    def embed(self, images: Tensor) -> State:
        return tuple(self._model._embed(images))

    def finish(self, *state: Tensor) -> Tensor:
        return self.classify(*(norm(x) for norm, x in zip(self._model.norm, state, strict=True)))

    def classify(self, *state: Tensor) -> Tensor:
        return self._model.forward_head(list(state))

    def tokens(self, state: State, step: int) -> Tokens:
        _, large = state
        return Tokens(
            patches=large[:, 1:], grid=self._spec.grid, prefix=large[:, :1], class_tokens=1
        )

    def token_spec(self, step: int) -> TokenSpec:
        return self._spec

    @property
    def classifier_heads(self) -> int:
        return 2

    @property
    def attention_heads(self) -> int:
        return self._heads


def _is_crossvit(model: nn.Module) -> bool:
    return descends(model, "timm", "CrossVit")


FAMILIES.register("crossvit")(
    Family("timm CrossViT: two branches, with fusion", _is_crossvit, CrossViTChain)
)
