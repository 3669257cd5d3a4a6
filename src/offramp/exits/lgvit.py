"""LGViT's two heads: local perception (LPH) and global aggregation (GAH).

Xu et al., "LGViT: Dynamic Early Exiting for Accelerating Vision Transformer", ACM MM 2023,
arXiv 2308.00255. Shallow exits get a convolutional head because shallow ViT features lack
locality, deep exits a self-attention head over converged (sub-sampled) patches. Convolutions with
kernel 1 are linear layers on tokens here, which is the same arithmetic without layout changes.
"""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import Classifiers, Exit, Outputs, init_head, register_exit
from offramp.exits.reading import grid_of

Convergence = Literal["stride", "mean"]


class LGViTExit(Exit):
    """A trunk on the patches, pooled, added to each class token and classified.

    ``features`` are what LGViT's second stage distils; ``align`` brings the last block's patches
    to the same tokens. With ``norm`` a LayerNorm stands between features and pooling, as in the
    released heads for Swin, whose classifiers read no class token.
    """

    name: str

    def __init__(self, spec: TokenSpec, num_classes: int, *, norm: bool) -> None:
        grid_of(self.name, spec)
        super().__init__(spec, num_classes)
        self.norm = nn.LayerNorm(spec.width, eps=1e-5) if norm else None
        self.classifiers = Classifiers(spec.width, num_classes, spec.class_tokens)

    @abstractmethod
    def features(self, tokens: Tokens) -> Tensor:
        """Tokens → trunk features (B, n, D)."""

    def align(self, patches: Tensor) -> Tensor:
        """Patches of the last block (B, N, D) → those at this head's tokens (B, n, D)."""
        return patches

    def classify(self, features: Tensor, tokens: Tokens) -> Outputs:
        """Norm and pool features (B, n, D), add each class token, classify."""
        x = features if self.norm is None else self.norm(features)
        return Outputs(self.classifiers(with_classes(x.mean(dim=1), tokens)))

    def read(self, tokens: Tokens) -> Outputs:
        return self.classify(self.features(tokens), tokens)


def with_classes(pooled: Tensor, tokens: Tokens) -> Tensor:
    """g (B, D) → g + cls for every class token (B, max(T, 1), D)."""
    g = pooled.unsqueeze(1)
    return g + tokens.classes if tokens.class_tokens else g


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over batch and tokens: (B, N, D) → (B, N, D), the statistics of a 2-D one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)

    def affine_form(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (D,) that it applies in eval mode."""
        assert self.running_var is not None
        assert self.running_mean is not None
        scale = self.weight / torch.sqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


@register_exit("lph")
class LPH(LGViTExit):
    """LGViT's local perception head: 1×1 conv, depth-wise k×k conv, 1×1 conv, on the patch map.

    Each convolution is followed by GELU and BatchNorm, the last by BatchNorm alone.

    Args:
        kernel: side of the depth-wise convolution, odd; 1 leaves it out (the deeper LPHs).
        residual: add the input patches to the trunk's result (released code; the paper's figure
            only shows the class token's skip).
        expansion: hidden over token width (1 in the released model).
        final_activation: GELU before the last BatchNorm, as the paper's figure draws it.
        norm: LayerNorm before pooling (the released heads for Swin).
    """

    name = "lph"

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        kernel: int = 3,
        residual: bool = True,
        expansion: float = 1.0,
        final_activation: bool = False,
        norm: bool = False,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise OfframpError(f"lph: kernel = {kernel}, but it must be odd (1 = no depth-wise)")
        super().__init__(spec, num_classes, norm=norm)
        D, hidden = spec.width, max(1, round(spec.width * expansion))
        self.residual = residual
        self.expand = nn.Linear(D, hidden)
        self.norm1 = TokenBatchNorm(hidden)
        self.depthwise: nn.Conv2d | None = None
        if kernel > 1:
            self.depthwise = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
            self.norm2 = TokenBatchNorm(hidden)
        self.project = nn.Linear(hidden, D)
        self.final_activation = nn.GELU() if final_activation else nn.Identity()
        self.norm3 = TokenBatchNorm(D)
        init_head(self)

    def features(self, tokens: Tokens) -> Tensor:
        x = self.norm1(F.gelu(self.expand(tokens.patches)))  # (B, N, hidden)
        if self.depthwise is not None:
            x = self.norm2(F.gelu(convolve(self.depthwise, x, tokens.grid)))
        x = self.norm3(self.final_activation(self.project(x)))  # (B, N, D)
        return x + tokens.patches if self.residual else x

    def for_inference(self) -> nn.Module:
        if not isinstance(self.final_activation, nn.Identity):
            return self  # GELU does not commute with pooling
        from offramp.exits.lgvit_inference import FoldedLPH

        return FoldedLPH(self)


def convolve(conv: nn.Conv2d, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Apply a convolution to tokens (B, N, D) in raster order of ``grid``."""
    assert grid is not None
    maps = x.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, D, H, W), channels last in memory
    return conv(maps).permute(0, 2, 3, 1).flatten(1, 2)


@register_exit("gah")
class GAH(LGViTExit):
    """LGViT's global aggregation head: self-attention over converged patches.

    Args:
        ratio: convergence r; every r-th row and column is kept, side floor((H−1)/r)+1.
        convergence: ``stride`` keeps those tokens (released code), ``mean`` averages r×r windows
            (paper's text); both keep the same number of tokens.
        heads: attention heads, independent of the backbone's; by default the largest divisor of
            the token width up to the paper's 8.
        norm: LayerNorm before pooling (the released heads for Swin).
    """

    name = "gah"

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        ratio: int = 2,
        convergence: Convergence = "stride",
        heads: int | None = None,
        norm: bool = False,
    ) -> None:
        D = spec.width
        if heads is None:
            heads = next(h for h in range(8, 0, -1) if D % h == 0)
        if ratio < 1:
            raise OfframpError(f"gah: ratio = {ratio}, but it must be at least 1")
        if convergence not in ("stride", "mean"):
            raise OfframpError(f"gah: convergence = {convergence!r} (use 'stride' or 'mean')")
        if heads < 1 or D % heads:
            raise OfframpError(f"gah: heads = {heads} does not divide the token width {D}")
        super().__init__(spec, num_classes, norm=norm)
        self.ratio, self.convergence, self.heads = ratio, convergence, heads
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.proj = nn.Linear(D, D)
        init_head(self)

    def align(self, patches: Tensor) -> Tensor:
        assert self.spec.grid is not None
        if self.ratio == 1:
            return patches
        maps = patches.unflatten(1, self.spec.grid)  # (B, H, W, D)
        if self.convergence == "stride":
            return maps[:, :: self.ratio, :: self.ratio].flatten(1, 2)
        pooled = F.avg_pool2d(maps.permute(0, 3, 1, 2), self.ratio, ceil_mode=True)
        return pooled.permute(0, 2, 3, 1).flatten(1, 2)

    def attend(self, patches: Tensor) -> Tensor:
        """Converged patches → attention result before the output projection (B, n, D)."""
        x = self.align(patches)
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, heads, n, D / heads)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def features(self, tokens: Tokens) -> Tensor:
        return self.proj(self.attend(tokens.patches))

    def for_inference(self) -> nn.Module:
        from offramp.exits.lgvit_inference import PooledGAH

        return PooledGAH(self)
