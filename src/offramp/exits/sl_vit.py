"""SL-ViT: a small single-layer vision transformer as the exit of any backbone with a map.

Bakhtiarnia, Zhang and Iosifidis, "Single-Layer Vision Transformers for More Accurate Early Exits
with Less Overhead", Neural Networks 2022, arXiv 2105.09121.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import HeadKind, init_head, register_exit
from offramp.exits.mevit import LayerExit, Readout, encoder_block, leading_tokens
from offramp.exits.mevit_inference import LeadingBlock
from offramp.exits.reading import as_map, attention_heads, grid_of


@register_exit("sl_vit")
class SLViT(LayerExit):
    """SL-ViT's branch: the patch map cut into patches, embedded, one encoder block, classifier.

    The branch has a class token and position embeddings of its own and reads no class token of the
    backbone. A map that patches do not fill is padded with zeros below and on the right.

    Args:
        patch: side of a patch in positions of the map.
        width: of the branch's tokens.
        heads: attention heads; by default the largest divisor of the width up to 8.
        ratio: hidden width of the block's MLP over ``width``.
        dropout: probability behind attention and inside the MLP, in training.
        pool: ``class``, the branch's class token (also ``auto``), or ``mean`` of all patches.
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        patch: int = 1,
        width: int = 192,
        heads: int | None = None,
        ratio: float = 4.0,
        dropout: float = 0.1,
        pool: Readout = "class",
        head: HeadKind = "linear",
    ) -> None:
        rows, columns = grid = grid_of("sl_vit", spec)
        if not 1 <= patch <= max(grid):
            raise OfframpError(
                f"sl_vit: patch = {patch}, but the grid is {rows} × {columns} (use 1…{max(grid)})"
            )
        heads = attention_heads("sl_vit", width, heads)
        leading = leading_tokens("sl_vit", pool, 1)
        super().__init__(
            spec,
            num_classes,
            encoder_block(width, heads, ratio=ratio, dropout=dropout),
            nn.LayerNorm(width, eps=1e-6),
            width=width,
            leading=leading,
            head=head,
        )
        self.grid, self.padding = grid, (0, -columns % patch, 0, -rows % patch)
        n = -(-rows // patch) * -(-columns // patch)
        self.embed = nn.Conv2d(spec.width, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if leading else None
        self.positions = nn.Parameter(torch.zeros(1, leading + n, width))
        init_head(self.embed)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.token is not None:
            nn.init.trunc_normal_(self.token, std=0.02)

    def sequence(self, tokens: Tokens) -> Tensor:
        x = as_map(tokens.patches, self.grid)
        if any(self.padding):
            x = F.pad(x, self.padding)
        x = self.embed(x).flatten(2).transpose(1, 2)  # (B, n, width)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.positions

    def leading_layer(self) -> nn.Module:
        return LeadingBlock(self.layer, self.leading)
