"""Which head sits where: exit specifications, placement by equal cost, and named layouts."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from offramp.chains.tapped import Tap
from offramp.errors import OfframpError, suggest
from offramp.exits.exit import EXITS
from offramp.registry import Registry


class ExitSpec(BaseModel):
    """One early exit: the head's name, the 1-based block it follows, and the head's options."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(description="block whose output the head reads, counted from 1")
    head: str = Field(description="registered exit")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the head")
    tap: Tap = Field(default="block", description="what it reads there: block, attention or ffn")

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the usual tap unsaid: fingerprints of models without one stay what they were."""
        values: dict[str, Any] = write(self)
        return {k: v for k, v in values.items() if k != "tap" or v != "block"}


Layout = Callable[[Sequence[int]], list[ExitSpec]]
"""Positions (1-based blocks, shallow to deep) → one specification per position."""

LAYOUTS: Registry[Layout] = Registry("exit layout")
register_layout = LAYOUTS.register

_Head = tuple[str, dict[str, Any]]
_LPH3: _Head = ("lph", {"kernel": 3})
_LPH1: _Head = ("lph", {"kernel": 1})
_GAH1: _Head = ("gah", {"ratio": 1})
_GAH2: _Head = ("gah", {"ratio": 2})
_GAH3: _Head = ("gah", {"ratio": 3})
_RELEASED = {
    2: [_LPH3, _GAH2],
    4: [_LPH3, _LPH1, _GAH2, _GAH3],
    6: [_LPH3, _LPH1, _GAH2, _GAH2, _GAH3, _GAH3],
    8: [_LPH3, _LPH3, _LPH1, _LPH1, _GAH2, _GAH2, _GAH3, _GAH3],
}


@register_layout("lgvit")
def lgvit_layout(positions: Sequence[int]) -> list[ExitSpec]:
    """LGViT: local heads first, global later; kernels shrink and convergence grows with depth."""
    heads = _RELEASED.get(len(positions))
    return _placed(positions, heads or _quarters(positions, _LPH3, _LPH1, _GAH2, _GAH3))


@register_layout("lgvit-swin")
def lgvit_swin_layout(positions: Sequence[int]) -> list[ExitSpec]:
    """LGViT as released for Swin: less convergence on small maps, LayerNorm before classifiers."""
    heads = _quarters(positions, _LPH3, _LPH1, _GAH1, _GAH2)
    return _placed(positions, [(head, options | {"norm": True}) for head, options in heads])


def _quarters(positions: Sequence[int], *kinds: _Head) -> list[_Head]:
    """The kinds in order of depth, each on an equal share of the exits."""
    count = len(positions)
    return [kinds[len(kinds) * i // count] for i in range(count)]


def _placed(positions: Sequence[int], heads: Sequence[_Head]) -> list[ExitSpec]:
    return [
        ExitSpec(after=after, head=head, options=dict(options))
        for after, (head, options) in zip(positions, heads, strict=True)
    ]


def equal_cost_positions(costs: Sequence[float], count: int, *, first: float = 1 / 3) -> list[int]:
    """Place exits so that the cost between neighbours is about equal (LGViT's placement rule).

    Args:
        costs: cost of each block, any unit.
        count: number of early exits; at most one per block, the last block has the final exit.
        first: share of the cost spent before the first exit. The default gives blocks 4…11 for
            eight exits on twelve equal blocks.

    Returns:
        1-based blocks, ascending.
    """
    depth, total = len(costs), float(sum(costs))
    if not 1 <= count < depth:
        raise OfframpError(
            f"{count} exits asked for, but {depth} blocks have room for 1…{depth - 1}"
        )
    done = [sum(costs[: i + 1]) / total for i in range(depth)]  # share spent after each block
    first = min(first, (depth - count) / depth)  # leave a block for each exit
    targets = [first + i * (1 - first) / count for i in range(count)]
    positions: list[int] = []
    for i, target in enumerate(targets):
        low = positions[-1] + 1 if positions else 1
        high = depth - (count - i)  # room for the exits still to come
        # 1e-9: at equal distance the shallower block wins, whatever the rounding
        positions.append(
            min(range(low, high + 1), key=lambda p: abs(done[p - 1] - target) + 1e-9 * p)
        )
    return positions


def expand_layout(
    name: str, costs: Sequence[float], *, count: int | None = None, at: Sequence[int] | None = None
) -> list[ExitSpec]:
    """A layout's name, or a head's name for that head everywhere → one spec per exit.

    Args:
        name: registered layout or exit.
        costs: cost of each block, for the placement.
        count: number of exits when ``at`` is not given (default: 8, fewer on shallow backbones).
        at: 1-based blocks.
    """
    if at is None:
        default = max(1, min(8, round(len(costs) * 2 / 3)))
        at = equal_cost_positions(costs, default if count is None else count)
    elif count is not None and count != len(at):
        raise OfframpError(f"exits: count = {count}, but at = {list(at)} names {len(at)} blocks")
    at = sorted(at)
    if name in LAYOUTS.names():
        return LAYOUTS.get(name)(at)
    if name in EXITS.names():
        options = EXITS.get(name).along(len(at))
        return _placed(at, [(name, own) for own in options])
    raise OfframpError(suggest("exit", name, [*EXITS.names(), *LAYOUTS.names()]))


def check_positions(specs: Sequence[ExitSpec], depth: int, backbone: str) -> None:
    """Raise `OfframpError` for a position outside the backbone or taken twice."""
    seen: set[int] = set()
    for i, spec in enumerate(specs):
        if not 1 <= spec.after < depth:
            raise OfframpError(
                f"exits[{i}].after = {spec.after}, but {backbone} has {depth} blocks "
                f"(use 1…{depth - 1}; the last block has the model's own classifier)"
            )
        if spec.after in seen:
            raise OfframpError(f"exits[{i}].after = {spec.after} stands twice (one exit per block)")
        seen.add(spec.after)
