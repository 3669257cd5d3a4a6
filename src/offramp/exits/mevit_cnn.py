"""Multi-Exit ViT's convolutional heads: CNN-Ignore-EE, CNN-Add-EE and CNN-Project-EE.

Bakhtiarnia et al., BMVC 2021, arXiv 2106.15183. Patch tokens are seen as a map; the three differ in
what becomes of the class token, as the read-outs of DPT do (Ranftl et al., ICCV 2021). Flattening
ties them to one image size.
"""

import copy
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import (
    Exit,
    HeadKind,
    Outputs,
    classifier,
    init_head,
    linear_layer,
    register_exit,
)
from offramp.exits.reading import as_map, check_choice, grid_of

FILTERS = 16


class CNNExit(Exit):
    """A 3×3 convolution to 16 maps, ELU, 2×2 max-pooling, and a classifier on what is left.

    Args:
        channels: of the map that ``readout`` makes.
    """

    name: str

    def __init__(
        self, spec: TokenSpec, num_classes: int, *, channels: int, head: HeadKind, joins: bool
    ) -> None:
        rows, columns = grid = grid_of(self.name, spec)
        if min(rows, columns) < 2:
            raise OfframpError(
                f"{self.name} pools 2 × 2 patches, but the grid is {rows} × {columns}"
            )
        if joins and spec.class_tokens == 0:
            raise OfframpError(
                f"{self.name} joins the class token to the patches, but there is none here "
                "(use cnn_ignore_ee)"
            )
        super().__init__(spec, num_classes)
        self.grid = grid
        self.conv = nn.Conv2d(channels, FILTERS, 3, padding=1)
        self.classifier = classifier(FILTERS * (rows // 2) * (columns // 2), num_classes, head)

    @abstractmethod
    def readout(self, tokens: Tokens) -> Tensor:
        """Tokens → patches (B, H·W, channels) that know of the class token, or not."""

    def read(self, tokens: Tokens) -> Outputs:
        x = as_map(self.readout(tokens), self.grid)  # (B, channels, H, W)
        x = F.max_pool2d(F.elu(self.conv(x)), 2)
        return Outputs(self.classifier(x.flatten(1)))


def class_token(tokens: Tokens) -> Tensor:
    """The class token (B, 1, D); DPT takes the mean of a distilled model's two."""
    classes = tokens.classes
    return classes if tokens.class_tokens == 1 else classes.mean(dim=1, keepdim=True)


@register_exit("cnn_ignore_ee")
class CNNIgnoreEE(CNNExit):
    """CNN-Ignore-EE of Multi-Exit ViT: a convolutional head on the patches, without class token.

    Args:
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    name = "cnn_ignore_ee"

    def __init__(self, spec: TokenSpec, num_classes: int, *, head: HeadKind = "linear") -> None:
        super().__init__(spec, num_classes, channels=spec.width, head=head, joins=False)
        init_head(self)

    def readout(self, tokens: Tokens) -> Tensor:
        return tokens.patches


@register_exit("cnn_add_ee")
class CNNAddEE(CNNExit):
    """CNN-Add-EE of Multi-Exit ViT: a convolutional head on patches plus class token.

    Args:
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    name = "cnn_add_ee"

    def __init__(self, spec: TokenSpec, num_classes: int, *, head: HeadKind = "linear") -> None:
        super().__init__(spec, num_classes, channels=spec.width, head=head, joins=True)
        init_head(self)

    def readout(self, tokens: Tokens) -> Tensor:
        return tokens.patches + class_token(tokens)


@register_exit("cnn_project_ee")
class CNNProjectEE(CNNExit):
    """CNN-Project-EE of Multi-Exit ViT: a convolutional head on patches joined with class token.

    Args:
        join: ``project`` brings both back to the token width, GELU(W [t_j ; t_0] + b), as DPT does;
            ``concat`` convolves the 2D channels.
        head: ``linear``, or ``mlp`` with two hidden layers (`classifier`).
    """

    name = "cnn_project_ee"

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        join: Literal["project", "concat"] = "project",
        head: HeadKind = "linear",
    ) -> None:
        check_choice(self.name, "join", join, ("project", "concat"))
        D = spec.width
        channels = D if join == "project" else 2 * D
        super().__init__(spec, num_classes, channels=channels, head=head, joins=True)
        self.join: nn.Module = Project(D) if join == "project" else Concat()
        init_head(self)

    def readout(self, tokens: Tokens) -> Tensor:
        return self.join(tokens.patches, class_token(tokens))

    def for_inference(self) -> nn.Module:
        if not isinstance(self.join, Project):
            return self
        fast = copy.deepcopy(self)
        fast.join = SplitProject(self.join.linear)
        return fast.requires_grad_(False)


class Concat(nn.Module):
    """Patches (B, N, D) and class token (B, 1, D) → (B, N, 2D)."""

    def forward(self, patches: Tensor, token: Tensor) -> Tensor:
        return torch.cat([patches, token.expand(-1, patches.shape[1], -1)], dim=2)


class Project(nn.Module):
    """Patches (B, N, D) and class token (B, 1, D) → GELU(W [t_j ; t_0] + b), (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.concat, self.linear = Concat(), nn.Linear(2 * width, width)

    def forward(self, patches: Tensor, token: Tensor) -> Tensor:
        return F.gelu(self.linear(self.concat(patches, token)))


class SplitProject(nn.Module):
    """`Project` with W cut in two, so that the class token is multiplied once, not N times."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        D = linear.out_features
        self.patches = linear_layer(linear.weight[:, :D], torch.zeros_like(linear.bias))
        self.token = linear_layer(linear.weight[:, D:], linear.bias)

    def forward(self, patches: Tensor, token: Tensor) -> Tensor:
        return F.gelu(self.patches(patches) + self.token(token))
