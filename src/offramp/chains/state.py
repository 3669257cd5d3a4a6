"""What flows between steps (a state) and what heads read of it (tokens)."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

State = tuple[Tensor, ...]
"""A flat tuple of tensors whose first dimension is the batch."""


class Schema(NamedTuple):
    """Names of a state's tensors, in order: the backbone's, then a reducer's, then the exits'."""

    backbone: tuple[str, ...]
    reducer: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()

    @property
    def chain_width(self) -> int:
        """How many tensors the chain itself reads and writes; the exits' carry comes after them."""
        return len(self.backbone) + len(self.reducer)


class TokenSpec(NamedTuple):
    """The shape of the tokens after a step, known before any image is seen."""

    width: int
    grid: tuple[int, int] | None
    class_tokens: int = 0
    """How many of the leading prefix tokens a classifier reads (2 for distilled models)."""
    answers: bool = False
    """The one class token is an answer already: the logits of a whole model of a cascade."""
    heads: int = 0
    """Attention heads that a block of the backbone has at this width; 0 where none says."""

    @property
    def patches(self) -> int:
        """Number of patch tokens; raises ValueError when there is no grid."""
        if self.grid is None:
            raise ValueError("these tokens have no grid, so their number is not fixed")
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Tokens:
    """The view of a state that heads read.

    Shapes: ``patches`` (B, N, C) in raster order of ``grid`` (H, W), N = H·W; ``prefix`` (B, P, C)
    holds the ``class_tokens`` class tokens first, then registers. After a reducer ``index`` (B, N)
    says where each token came from and ``size`` (B, N) how many it stands for.
    """

    patches: Tensor
    grid: tuple[int, int] | None
    prefix: Tensor
    class_tokens: int = 0
    index: Tensor | None = None
    size: Tensor | None = None

    @property
    def classes(self) -> Tensor:
        """The class tokens, (B, class_tokens, C)."""
        return self.prefix[:, : self.class_tokens]

    @property
    def mean(self) -> Tensor:
        """The mean patch (B, 1, C); after a reducer a token counts as often as it stands for."""
        if self.size is None:
            return self.patches.mean(dim=1, keepdim=True)
        weights = self.size.to(self.patches.dtype).unsqueeze(1)  # (B, 1, N)
        return weights @ self.patches / weights.sum(-1, keepdim=True)

    @property
    def summary(self) -> "Tokens":
        """Class tokens and one patch, the mean of all: for heads that read no more than that."""
        return Tokens(self.mean, None, self.classes, self.class_tokens)
