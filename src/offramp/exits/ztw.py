"""Zero Time Waste's cascade head: an exit that also reads what the exit before it said.

Wołczyk et al., "Zero Time Waste: Recycling Predictions in Early Exit Neural Networks", NeurIPS
2021. The ensembles over these heads are policies (``ztw_geometric``, ``ztw_arithmetic``). IMTA's
inline link is the same idea with another way in: Li et al., "Improved Techniques for Training
Adaptive Deep Networks", ICCV 2019.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp.chains.state import Tokens, TokenSpec
from offramp.errors import OfframpError
from offramp.exits.exit import Carry, Classifiers, Exit, Outputs, init_head, register_exit
from offramp.exits.reading import Pool, pooled, pooled_shape


@register_exit("ztw")
class ZTWExit(Exit):
    """ZTW's cascade head: a linear classifier on features and the previous exit's logits.

    It reads [x ; g(z)] of features x and logits z. Its own logits ride in the carry to the next
    head. ``exits: ztw`` makes the first one ``first``.

    Args:
        first: no exit before it hands on logits, so it reads the features alone.
        detach: keep the gradient from flowing into the head before, as ZTW does.
        link: g, ZTW's LayerNorm or, as ``isc``, IMTA's ReLU(BN(Linear(z))).
        pool, norm: as for `LinearExit`.
    """

    summary = True

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        *,
        first: bool = False,
        detach: bool = True,
        link: Literal["norm", "isc"] = "norm",
        pool: Pool = "auto",
        norm: bool = True,
    ) -> None:
        super().__init__(spec, num_classes)
        self.standalone = self.first = first
        self.detach, self.pool = detach, pool
        vectors, width = pooled_shape("ztw", spec, pool)
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()
        self.previous: nn.Module | None = None
        if not first:
            self.previous = _link(link, num_classes)
            width += num_classes
        self.classifiers = Classifiers(width, num_classes, vectors)
        init_head(self)

    @classmethod
    def along(cls, count: int) -> list[dict[str, Any]]:
        return [{"first": True} if k == 0 else {} for k in range(count)]

    def read(self, tokens: Tokens) -> Outputs:
        return self.forward(tokens)[0]

    def forward(self, tokens: Tokens, carry: Carry = ()) -> tuple[Outputs, Carry]:
        x = self.norm(pooled(tokens, self.pool))  # (B, T, D)
        if self.previous is not None:
            said = self.previous(self._handed_on(carry)).unsqueeze(1)  # (B, 1, C)
            x = torch.cat([x, said.expand(-1, x.shape[1], -1)], dim=2)
        logits = self.classifiers(x)
        return Outputs(logits), (logits,)

    def _handed_on(self, carry: Carry) -> Tensor:
        if not carry:
            raise OfframpError(
                "ztw: no exit before this one hands on its logits (the first needs first: true)"
            )
        return carry[0].detach() if self.detach else carry[0]


def _link(kind: str, num_classes: int) -> nn.Module:
    if kind == "isc":
        layers = (nn.Linear(num_classes, num_classes), nn.BatchNorm1d(num_classes), nn.ReLU())
        return nn.Sequential(*layers)
    if kind != "norm":
        raise OfframpError(f"ztw: unknown link {kind!r} (known: norm, isc)")
    # one number normalised by itself is always 0: a regression hands it on as it is
    return nn.LayerNorm(num_classes) if num_classes > 1 else nn.Identity()
