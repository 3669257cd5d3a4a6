"""A cascade as one chain: the steps of its members, laid one behind the other.

What a state holds depends on where it is. Inside a member it is that member's own state, behind
``pixels``, the images for the members to come, and with averaging ``logits``, the sum of the
answers so far. After a member's last step it is ``(pixels, logits)``, after the last member's
``(logits,)``. So every member's end can be an exit that costs nothing (the head `member`), and
exits inside a member read what they read in that member alone.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from offramp.chains.chain import FAMILIES, Chain, Family, chain, descends
from offramp.chains.image_size import bound_size
from offramp.chains.state import Schema, State, Tokens, TokenSpec
from offramp.errors import OfframpError

PIXELS, LOGITS = "pixels", "logits"


class CascadeStep(nn.Module):
    """One step of a member; what waits for later members rides ahead of the member's state.

    Args:
        links: the member's chain.
        member: the member in the cascade, which prepares its images.
        index: which of its steps, from 0.
        first, last: whether nobody comes before it, or after.
        sums: whether it adds its logits to those of the members before.
    """

    def __init__(
        self, links: Chain, member: nn.Module, index: int, *, first: bool, last: bool, sums: bool
    ) -> None:
        super().__init__()
        self.step = links.steps[index]
        self.opens, self.closes = index == 0 and not first, index == len(links) - 1
        self.last, self.sums = last, sums
        self._member: tuple[Any, Any] = (links, member)  # a tuple is not registered: views only

    def forward(self, *state: Tensor) -> State:
        if self.opens:
            state = self._open(*state)
        riding = int(not self.last) + int(self.sums)
        waiting, inner = state[:riding], self.step(*state[riding:])
        return self._close(waiting, inner) if self.closes else (*waiting, *inner)

    def _open(self, pixels: Tensor, logits: Tensor) -> State:
        """The end of the member before → this one's first state."""
        links, member = self._member
        waiting = (*(() if self.last else (pixels,)), *((logits,) if self.sums else ()))
        return (*waiting, *links.embed(member.prepare(pixels)))

    def _close(self, waiting: State, inner: State) -> State:
        """This member's last state → its end."""
        logits = self._member[0].finish(*inner)
        if self.sums:
            logits = waiting[-1] + logits
        return (logits,) if self.last else (waiting[0], logits)


class CascadeChain(Chain):
    """The zoo's ``Cascade`` as a chain.

    ``baseline`` is the last member alone: savings are stated against the big model, not against
    running all of them. With averaging the final exit says the mean of all logits; ``baseline``
    then takes the big model's time without giving the same answers.

    Attributes:
        members: a chain per member, each at its own size.
        ends: steps of the cascade behind which each member ends, counted from 1.
    """

    def __init__(self, backbone: nn.Module, image_size: tuple[int, int] | None = None) -> None:
        model: Any = backbone
        size = bound_size(image_size, model.image_size, remedy="other sizes of its members")
        members = tuple(chain(m.model, image_size=m.size) for m in model.members)
        for number, links in enumerate(members):
            _check(number, links, members[0])
        final = len(members) - 1
        steps = [
            CascadeStep(
                links,
                model.members[m],
                i,
                first=m == 0,
                last=m == final,
                sums=bool(model.average) and m > 0,
            )
            for m, links in enumerate(members)
            for i in range(len(links))
        ]
        super().__init__(backbone, steps)
        self.members = members
        self.ends = tuple(accumulate(len(links) for links in members))
        self.image_size, self.in_chans = size, members[0].in_chans
        self.num_classes = members[0].num_classes
        self.schema = self.schema_after(-1)

    @property
    def _model(self) -> Any:
        return self.backbone

    @property
    def baseline(self) -> nn.Module:
        return self._model.members[-1]

    @property
    def full_blocks(self) -> int:
        return len(self.members[-1])

    @property
    def input_defaults(self) -> dict[str, Any]:
        model = self._model
        known = dict(self.members[model.lead].input_defaults)
        if model.norm is not None:
            known["mean"], known["std"] = model.norm
        return known

    def _at(self, step: int) -> tuple[int, int]:
        """The member that step ``step`` belongs to, and which of its steps that is."""
        member = bisect_right(self.ends, max(step, 0))
        return member, step - (self.ends[member - 1] if member else 0)

    def _ends(self, step: int) -> bool:
        return step + 1 in self.ends

    def schema_after(self, step: int) -> Schema:
        m, i = self._at(step)
        ahead = () if m == len(self.members) - 1 else (PIXELS,)
        if self._ends(step):
            return Schema(backbone=(*ahead, LOGITS))
        if self._model.average and m > 0:
            ahead = (*ahead, LOGITS)
        inner = self.members[m].schema_after(i)
        return Schema(backbone=(*ahead, *inner.backbone), reducer=inner.reducer)

    def place(self, step: int) -> str:
        m, i = self._at(step)
        name = f"model {m + 1}"
        return name if self._ends(step) else f"{name} {self.members[m].place(i)}"

    def embed(self, images: Tensor) -> State:
        first = self._model.members[0]
        return (images, *self.members[0].embed(first.prepare(images)))

    def finish(self, *state: Tensor) -> Tensor:
        (logits,) = state
        return self._answer(logits, len(self.members))

    def _answer(self, logits: Tensor, asked: int) -> Tensor:
        """What a cascade says that has asked so many members."""
        return logits / asked if self._model.average and asked > 1 else logits

    def tokens(self, state: State, step: int) -> Tokens:
        m, i = self._at(step)
        if self._ends(step):
            answer = self._answer(state[-1], m + 1).unsqueeze(1)  # (B, 1, num_classes)
            return Tokens(answer, None, answer, 1)
        return self.members[m].tokens(state[-self.members[m].schema_after(i).chain_width :], i)

    def token_spec(self, step: int) -> TokenSpec:
        m, i = self._at(step)
        if self._ends(step):
            return TokenSpec(self.num_classes, None, 1, answers=True)
        return self.members[m].token_spec(i)

    def exit_spec(self, step: int) -> TokenSpec:
        m, i = self._at(step)
        return self.token_spec(step) if self._ends(step) else self.members[m].exit_spec(i)

    @property
    def classifier_heads(self) -> int:
        return self.members[-1].classifier_heads


def _check(number: int, links: Chain, first: Chain) -> None:
    if isinstance(links, CascadeChain):
        raise OfframpError(f"model {number + 1} is a cascade itself: give its members instead")
    for what in ("num_classes", "in_chans"):
        had, has = getattr(first, what), getattr(links, what)
        if had != has:
            raise OfframpError(
                f"models of a cascade must agree, but {what} is {had} in the first and {has} in "
                f"model {number + 1}"
            )


def _is_cascade(model: nn.Module) -> bool:
    return descends(model, "offramp.zoo.cascade", "Cascade")


FAMILIES.register("cascade")(
    Family("whole models one behind the other, from cheap to good", _is_cascade, CascadeChain)
)
