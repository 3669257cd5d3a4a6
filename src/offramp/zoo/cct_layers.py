"""What CCT is made of: convolved patches, its block, and pooling of the sequence.

Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers", arXiv:2104.05704.
"""

from itertools import pairwise

from timm.layers import DropPath, Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

HIDDEN = 64  # channels between convolutions
LN_EPS = 1e-5


class Tokenizer(nn.Sequential):
    """C times convolution, ReLU and max-pooling; (B, 3, H, W) → (B, dim, H', W')."""

    def __init__(self, in_chans: int, dim: int, *, kernel: int, convs: int) -> None:
        self.kernel, self.stride, self.padding = (
            kernel,
            max(1, kernel // 2 - 1),
            max(1, kernel // 2),
        )
        widths = [in_chans, *[HIDDEN] * (convs - 1), dim]
        super().__init__(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel, self.stride, self.padding, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2, 1),
                )
                for before, after in pairwise(widths)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of an image (H, W)."""
        return self._side(image_size[0]), self._side(image_size[1])

    def _side(self, pixels: int) -> int:
        for _ in self:
            pixels = (pixels + 2 * self.padding - self.kernel) // self.stride + 1
            pixels = (pixels - 1) // 2 + 1  # the pooling
        return pixels


class CCTBlock(nn.Module):
    """Attention and MLP; x (B, N, C) → x.

    Not the usual pre-norm block: the sum behind the attention is normalised, and the MLP reads and
    is added to that normalised value.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LN_EPS)
        self.attn = Attention(
            dim, num_heads, qkv_bias=False, attn_drop=attn_drop, proj_drop=proj_drop
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LN_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(x + self.drop_path1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.mlp(x))


class SequencePool(nn.Module):
    """z = Σ aᵢ xᵢ with a = softmax of a learned score over the tokens; (B, N, C) → (B, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.score(x).softmax(dim=1)  # (B, N, 1)
        return (a.transpose(1, 2) @ x).squeeze(1)
