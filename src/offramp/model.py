"""MultiExitModel: a chain with exits."""

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from offramp.chains import State, chain
from offramp.chains.tapped import tapped
from offramp.errors import OfframpError
from offramp.exits import Exit, build_exit, check_positions
from offramp.files import tensor_digest
from offramp.hub import HubModel
from offramp.model_config import ModelConfig, Preprocessing
from offramp.reducers import ReducerSpec, reduced
from offramp.segments import Segment
from offramp.tasks import Task, task_named


class MultiExitModel(HubModel):
    """A backbone seen as a chain, with heads that may answer early; the backbone's own comes last.

    Args:
        backbone: the model people bring, for instance from ``timm.create_model``.
        config: what is needed to build it again; its ``exits`` say which head sits where.

    Attributes:
        chain: the backbone as ``embed → steps → finish``.
        exits: the early heads, shallow to deep.
        positions: 1-based block behind each early head.
        num_exits: early heads plus the backbone's own classifier.
    """

    def __init__(self, backbone: nn.Module, config: ModelConfig) -> None:
        super().__init__(backbone, config)
        links = chain(backbone, image_size=config.preprocessing.image_size)
        links = reduced(links, config.reducer)
        specs = sorted(config.exits, key=lambda spec: spec.after)
        check_positions(specs, len(links), config.backbone)
        self.chain = tapped(links, {spec.after: spec.tap for spec in specs})
        self.positions = tuple(spec.after for spec in specs)
        self.exits = nn.ModuleList(
            build_exit(
                spec.head,
                self.chain.exit_spec(spec.after - 1),
                self.chain.num_classes,
                spec.options,
            )
            for spec in specs
        )

    @property
    def backbone(self) -> nn.Module:
        """The original model, unmodified."""
        return self.chain.backbone

    @property
    def heads(self) -> list[Exit]:
        """The early heads, shallow to deep."""
        return [head for head in self.exits if isinstance(head, Exit)]

    @property
    def num_exits(self) -> int:
        return len(self.exits) + 1

    @property
    def exit_names(self) -> list[str]:
        return [*(self.chain.place(p - 1) for p in self.positions), "final"]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks run by a sample that leaves at each exit."""
        return (*self.positions, len(self.chain))

    @property
    def standalone(self) -> list[bool]:
        """Whether each exit can be switched off without changing what the others say."""
        return [*(bool(head.standalone) for head in self.heads), True]

    @property
    def preprocessing(self) -> Preprocessing:
        return self.config.preprocessing

    @cached_property
    def task(self) -> Task:
        """What kind of answers it gives."""
        return task_named(self.config.task, self.config.target)

    @property
    def labels(self) -> list[str] | None:
        return self.config.labels

    def walk(self, images: Tensor) -> Iterator[State]:
        """Yield the chain's state before each exit, early ones first, then the last block's."""
        state, done = self.chain.embed(images), 0
        for stop in self.blocks:
            for step in self.chain.steps[done:stop]:
                state = step(*state)
            done = stop
            yield state

    def forward(self, images: Tensor) -> list[NamedTuple]:
        """Images (B, 3, H, W) → what every exit says, shallow to deep.

        A regression model speaks in the unit it is trained in (`ModelConfig.target`); runners and
        records give values in the unit of the targets.
        """
        outputs = []
        inputs: State = (images,)
        for segment in self.segments():
            inputs, said = segment(*inputs)
            outputs.append(said)
        return outputs

    def segments(
        self, active: Sequence[int] | None = None, *, inference: bool = False
    ) -> list[Segment]:
        """The chain cut behind each active exit.

        Args:
            active: early exits that stay, by index; the final exit always stays. None: all.
            inference: use copies of the heads made for speed (folded norms, earlier pooling);
                equal to the others up to rounding.

        Raises:
            OfframpError: for an unknown exit, or one that others need and that is left out.
        """
        keep = sorted(set(range(len(self.exits)) if active is None else active))
        for k in keep:
            if not 0 <= k < len(self.exits):
                raise OfframpError(
                    f"active exit {k} does not exist (early exits: 0…{len(self.exits) - 1})"
                )
        dependent = [k for k in keep if not self.standalone[k]]
        if dependent and keep[: dependent[-1] + 1] != list(range(dependent[-1] + 1)):
            raise OfframpError(
                f"exit {dependent[-1]} depends on every exit before it, so none can be left out"
            )
        segments, start = [], 0
        for k in keep:
            head: nn.Module = self.exits[k]
            if inference:
                head = copy.deepcopy(self.heads[k]).eval().for_inference()
            segments.append(Segment(self.chain, start, self.positions[k], k, head))
            start = self.positions[k]
        segments.append(Segment(self.chain, start, len(self.chain), len(self.exits), None))
        return segments

    def fingerprint(self) -> str:
        """16 hex characters that name these weights and this architecture."""
        named = {"backbone", "backbone_args", "exits"}
        if self.config.reducer is not None:  # so that models without one keep their name
            named.add("reducer")
        architecture = self.config.model_dump_json(include=named)
        unit = self.config.target.model_dump_json() if self.config.target else ""
        return tensor_digest(dict(self.state_dict()), extra=architecture + unit)

    def with_reducer(self, spec: ReducerSpec | None) -> "MultiExitModel":
        """A copy with the same weights, whose blocks are under another reducer, or under none.

        Raises:
            OfframpError: for weights that only training gives the reducer, or a head that cannot
                read what it leaves.
        """
        config = self.config.model_copy(update={"reducer": spec})
        other = MultiExitModel(copy.deepcopy(self.backbone), config)
        given, wanted = self.state_dict(), other.state_dict()
        if missing := sorted(set(wanted) - set(given)):
            name = "" if spec is None else spec.name
            raise OfframpError(
                f"reducer {name} has weights of its own ({missing[0]} …), which this model was "
                f"not trained with: train it under model.reducer = {name}"
            )
        other.load_state_dict({key: given[key] for key in wanted})
        other.recipe = self.recipe
        return other.train(self.training)

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of the backbone, with those of its reducer, and of all early heads."""
        return {
            "backbone": sum(p.numel() for p in self.chain.parameters()),
            "exits": sum(p.numel() for p in self.exits.parameters()),
        }


def load(path: str | Path, **options: Any) -> MultiExitModel:
    """Load a multi-exit model from a folder or the Hub (`HubModel.from_pretrained`)."""
    return MultiExitModel.from_pretrained(path, **options)
