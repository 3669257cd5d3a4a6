"""Several tasks served by one backbone, which runs once for all of them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offramp.errors import OfframpError
from offramp.exits.exit import Carry
from offramp.model import MultiExitModel
from offramp.training.trained import below


class SharedBackbone(nn.Module):
    """Models whose trunks are the same to the bit, as recipes on a frozen backbone leave them.

    Their trunks become one in memory, so that a further task costs its heads and its classifier.
    Each model goes on working by itself.

    Args:
        models: by name of the task; for instance runs of ``frozen`` with ``classifier: true`` that
            started from one run. Changed in place.

    Raises:
        OfframpError: naming the first tensor that differs.

    Example:
        >>> tasks = SharedBackbone({"species": first, "season": second})
        >>> said = tasks(images)  # {"species": [outputs, …], "season": [outputs, …]}
    """

    def __init__(self, models: Mapping[str, MultiExitModel]) -> None:
        super().__init__()
        if not models:
            raise OfframpError("give at least one model")
        self.names = list(models)
        self.models = nn.ModuleList(models.values())
        first = models[self.names[0]]
        own = _trunk(first)
        for name, model in list(models.items())[1:]:
            self._check(name, model, first)
            for key, parameter in _trunk(model).items():
                if key not in own or not torch.equal(parameter, own[key]):
                    raise OfframpError(
                        f"{name} and {self.names[0]} do not share a backbone: {key} differs"
                    )
                _replace(model.backbone, key, own[key])

    def _check(self, name: str, model: MultiExitModel, first: MultiExitModel) -> None:
        """Refuse models whose states are not alike."""
        ours, theirs = model.chain, first.chain
        alike = (
            type(ours) is type(theirs)
            and len(ours) == len(theirs)
            and ours.image_size == theirs.image_size
            and all(ours.schema_after(i) == theirs.schema_after(i) for i in range(-1, len(ours)))
        )
        if not alike:
            raise OfframpError(
                f"{name} and {self.names[0]} do not share a backbone: they differ in kind, depth, "
                "image size, taps or reducer"
            )
        mine, others = dict(model.backbone.named_buffers()), dict(first.backbone.named_buffers())
        for key, value in mine.items():
            if key not in others or not torch.equal(value, others[key]):
                raise OfframpError(
                    f"{name} and {self.names[0]} do not share a backbone: {key} differs"
                )

    def __getitem__(self, name: str) -> MultiExitModel:
        """The model of a task."""
        model = self.models[self.names.index(name)]
        assert isinstance(model, MultiExitModel)
        return model

    def forward(self, images: Tensor) -> dict[str, list[NamedTuple]]:
        """Images (B, 3, H, W) → what every exit of every task says; the trunk runs once."""
        models = {name: self[name] for name in self.names}
        trunk = models[self.names[0]].chain
        heads = {n: dict(zip(m.positions, m.heads, strict=True)) for n, m in models.items()}
        carries: dict[str, Carry] = dict.fromkeys(models, ())
        said: dict[str, list[NamedTuple]] = {name: [] for name in models}
        state = trunk.embed(images)
        for i, step in enumerate(trunk.steps):
            state = step(*state)
            for name, model in models.items():
                if head := heads[name].get(i + 1):
                    outputs, carries[name] = head(model.chain.tokens(state, i), carries[name])
                    said[name].append(outputs)
        for name, model in models.items():
            said[name].append(model.segments([])[0].read(*state)[1])
        return said


def _trunk(model: MultiExitModel) -> dict[str, nn.Parameter]:
    """The backbone's parameters but those behind its last step."""
    ids = below(model, len(model.chain))
    return {key: p for key, p in model.backbone.named_parameters() if id(p) in ids}


def _replace(module: nn.Module, key: str, parameter: nn.Parameter) -> None:
    """Put a parameter in place of the one that is called ``key``."""
    owner, _, name = key.rpartition(".")
    module.get_submodule(owner).register_parameter(name, parameter)
