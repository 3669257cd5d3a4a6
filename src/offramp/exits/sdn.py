"""Shallow-Deep Networks' internal classifier: mixed pooling of the map and one linear layer.

Kaya, Hong and Dumitras, "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking",
ICML 2019.
"""

import torch
from torch import nn
from torch.nn import functional as F

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import Exit, Outputs, init_head, register_exit
from offramp.exits.reading import as_map, grid_of


@register_exit("sdn")
class SDNExit(Exit):
    """SDN's internal classifier: a·max + (1 − a)·mean over windows, flattened, one linear layer.

    The share a is learned and not bounded. Each side is cut into whole windows, as near to ``size``
    of them as there can be; rows and columns left over are not read.

    Args:
        size: windows along each side of the map.
    """

    def __init__(self, spec: TokenSpec, num_classes: int, *, size: int = 4) -> None:
        grid = grid_of("sdn", spec)
        if size < 1:
            raise OfframpError(f"sdn: size = {size}, but it must be at least 1")
        super().__init__(spec, num_classes)
        self.grid, self.window = grid, tuple(window(side, size) for side in grid)
        self.share = nn.Parameter(torch.tensor(0.5))
        rows, columns = (side // w for side, w in zip(grid, self.window, strict=True))
        self.classifier = nn.Linear(spec.width * rows * columns, num_classes)
        init_head(self)

    def read(self, tokens: Tokens) -> Outputs:
        x = as_map(tokens.patches, self.grid)  # (B, D, H, W)
        largest, mean = F.max_pool2d(x, self.window), F.avg_pool2d(x, self.window)
        x = mean + self.share * (largest - mean)
        return Outputs(self.classifier(x.flatten(1)))


def window(side: int, size: int) -> int:
    """The window that cuts ``side`` into nearest to ``size`` windows and leaves least over."""
    return min(range(1, side + 1), key=lambda w: (abs(side // w - size), side % w))
