"""Parts: a segment and the decision behind it, tensors in and tensors out, for any engine."""

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from offramp import vision_cure
from offramp.chains.state import State
from offramp.policies import Policy
from offramp.segments import Segment
from offramp.tasks import Target

if TYPE_CHECKING:
    from offramp.model import MultiExitModel

EXAMPLES = 2  # torch.export takes a batch of one for a constant
DECISION = ("answer", "stop", "score")


class Layout(NamedTuple):
    """What a compiled part takes and returns, by name; every tensor is batch first.

    ``flow`` is what goes on to the next part: the state, the exits' carry, the policy's memory.
    ``says`` is what stays behind: ``answer (B, C)``, ``stop (B,)`` and ``score (B,)`` at an early
    exit, ``answer`` at the last; without a policy whatever the exit said.
    """

    exit_index: int
    inputs: tuple[str, ...]
    flow: tuple[str, ...]
    says: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: ``next_x`` is what the following part takes as ``x``."""
        return (*(f"next_{name}" for name in self.flow), *self.says)


class Part(nn.Module):
    """One segment and the policy's step behind its exit, as one tensor-only module.

    ``forward(*flow)`` takes images or what the part before handed on and returns ``(*flow, *says)``
    as its ``layout`` names them. The score is computed here too, so that a host which drives
    compiled parts reads one number per sample and knows no policy.

    Attributes:
        layout: names of inputs and outputs.
        example: inputs for `EXAMPLES` samples, for exporters that trace.
    """

    layout: Layout
    example: tuple[Tensor, ...]

    def __init__(
        self,
        segment: Segment,
        policy: Policy | None,
        *,
        bare: bool,
        last: bool,
        state_width: int,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        self.segment, self.policy, self.bare, self.last = segment, policy, bare, last
        self._state_width, self._target = state_width, target

    def forward(self, *flow: Tensor) -> tuple[Tensor, ...]:
        state, memory = flow[: self._state_width], flow[self._state_width :]
        if self.bare:
            return self.segment.body(*state)
        state, outputs = self.segment(*state)
        if self._target is not None:  # from here on in the unit of the targets
            outputs = outputs._replace(logits=self._target.restore(outputs.logits))
        if self.policy is None:
            return _distinct((*state, *outputs))
        k = self.segment.exit_index
        if self.last:
            return (self.policy.final_answer(k, outputs, memory),)
        stop, answer, memory, score = self.policy.scored_step(k, outputs, memory)
        return _distinct((*state, *memory, answer, stop, score))


def _distinct(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same tensors, each of them another: a head may hand on the logits that it also answers,
    but OpenVINO knows a result by its one name."""
    found: list[Tensor] = []
    for tensor in tensors:
        found.append(tensor + 0 if any(tensor is other for other in found) else tensor)
    return tuple(found)


def fresh_memory(first: Part, batch: int) -> tuple[Tensor, ...]:
    """What a first part takes behind ``batch`` images: its policy's memory, the same per sample."""
    return tuple(x[:1].expand(batch, *x.shape[1:]).contiguous() for x in first.example[1:])


def build_parts(
    model: "MultiExitModel",
    active: Sequence[int],
    policy: Policy | None,
    *,
    heads: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[Part]:
    """Cut a model behind its active exits, each piece with the decision that follows it.

    Modules are copied, so parts keep evaluation mode whatever happens to the model; weights are
    shared with it unless they move to another device or type. Build again after training: folded
    heads do not follow weights that change.

    Args:
        active: early exits by index; the final exit is always in.
        policy: whose decisions go in; None leaves what every exit said, for recording.
        heads: False leaves out the heads of early exits, to measure what they cost.
        device, dtype: where and in what the parts compute; the model's own when omitted.
    """
    first = next(model.parameters())
    device, dtype = device or first.device, dtype or first.dtype
    segments = model.segments(active, inference=True)
    stays = device == first.device and dtype == first.dtype
    shared = _tensors(nn.ModuleList(segments)) if stays else {}
    segments = copy.deepcopy(segments, shared)  # all together: segments keep sharing one chain
    _drop_idle(nn.ModuleList(segments).to(device=device, dtype=dtype).eval())
    chain = model.chain
    images = torch.zeros(EXAMPLES, chain.in_chans, *chain.image_size, device=device, dtype=dtype)
    flow: State = (images,)
    memory = () if policy is None else policy.start(EXAMPLES, device=device)
    names: tuple[str, ...] = ("images",)
    width = 1
    parts = []
    with torch.no_grad():  # not inference mode: exporters refuse its tensors
        for segment in segments:
            last = segment is segments[-1]
            bare = not (heads or last)
            target = model.config.target
            part = Part(
                segment, policy, bare=bare, last=last, state_width=width, target=target
            ).eval()
            part.example = (*flow, *memory)
            state, outputs = (segment.body(*flow), None) if bare else segment(*flow)
            memories = tuple(f"memory{i}" for i in range(len(memory)))
            inputs = (*names, *memories)
            flow, width = state, len(state)
            names = _state_names(model, segment.stop - 1, len(state))
            decided: tuple[str, ...] = ("answer",) if last else DECISION
            said = () if outputs is None else outputs._fields
            says = said if policy is None else decided
            onward = () if last else (*names, *memories)
            part.layout = Layout(segment.exit_index, inputs, onward, says)
            parts.append(part)
    return parts


def _state_names(model: "MultiExitModel", step: int, width: int) -> tuple[str, ...]:
    schema = model.chain.schema_after(step)
    own = (*schema.backbone, *schema.reducer)
    return (*own, *(f"carry{i}" for i in range(width - len(own))))


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    """Parameters and buffers as a memo for `copy.deepcopy`, which then shares them."""
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


def _drop_idle(module: nn.Module) -> None:
    """Take out what does nothing in evaluation mode: identities, dropout, drop path.

    timm's ViT makes eleven such calls per block, a few percent of DeiT-tiny's time at batch 1.
    """
    for parent in list(module.modules()):
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            continue  # their children are addressed by position
        for name, child in list(parent.named_children()):
            if type(child) in _idle_types():
                delattr(parent, name)
                setattr(parent, name, _unchanged)


@cache
def _idle_types() -> tuple[type[nn.Module], ...]:
    vision_cure.ensure()
    from timm.layers import DropPath

    return nn.Identity, nn.Dropout, DropPath


def _unchanged(x: Tensor) -> Tensor:
    return x
