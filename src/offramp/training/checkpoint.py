"""Training state on disk: safetensors and JSON, whole or absent, never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from offramp.errors import OfframpError
from offramp.files import read_tensors, tensors_metadata, write_tensors

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Position:
    """Where a run stands: ``step`` optimizer steps into stage ``stage`` of recipe ``recipe``.

    ``sums`` holds, per logged value, its sum and count since the epoch began.
    """

    stage: int
    step: int
    recipe: str
    seconds: float = 0.0
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)


def save_checkpoint(
    run: Path,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    average: nn.Module | None,
    memory: Mapping[str, Tensor],
) -> None:
    """Write weights, optimizer moments, averaged weights and what the objective remembers to
    ``checkpoint.safetensors``."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if optimizer is not None:
        for key, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    tensors |= {f"memory/{name}": value for name, value in memory.items()}
    write_tensors(run / CHECKPOINT, tensors, {"position": json.dumps(asdict(position))})


def read_position(run: Path) -> Position | None:
    """Where the checkpoint of a run stands; None when there is none."""
    if not (run / CHECKPOINT).is_file():
        return None
    metadata = tensors_metadata(run / CHECKPOINT)
    if "position" not in metadata:
        raise OfframpError(f"{run / CHECKPOINT}: not a checkpoint of a training run")
    return Position(**json.loads(metadata["position"]))


def load_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    average: nn.Module | None,
    memory: Mapping[str, Tensor],
) -> None:
    """Put a checkpoint's tensors back into place."""
    groups: dict[str, dict[str, Tensor]]
    groups = {"model": {}, "optimizer": {}, "average": {}, "memory": {}}
    for name, tensor in read_tensors(run / CHECKPOINT).items():
        group, _, rest = name.partition("/")
        groups[group][rest] = tensor
    model.load_state_dict(groups["model"])
    for name, tensor in memory.items():
        tensor.copy_(groups["memory"][name])
    if average is not None and groups["average"]:
        average.load_state_dict(groups["average"])
    if optimizer is not None and groups["optimizer"]:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            key, _, entry = name.partition("/")
            state.setdefault(int(key), {})[entry] = tensor
        saved = {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        optimizer.load_state_dict(saved)
