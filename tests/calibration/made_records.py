"""Records of exits that grow surer and better with depth, without any model."""

from typing import Any

import torch
from torch import Tensor

from offramp.calibration import Records, RecordsMeta
from offramp.costs.table import CostTable


def made_meta(exits: int, **changes: Any) -> RecordsMeta:
    values: dict[str, Any] = {
        "fingerprint": "0123456789abcdef",
        "dataset": "made",
        "split": "calibration",
        "exit_names": [*(f"block {k + 1}" for k in range(exits - 1)), "final"],
        "positions": list(range(1, exits)),
        "blocks": exits,
        "standalone": [True] * exits,
        "costs": made_costs(exits),
    }
    return RecordsMeta(**values | changes)


def made_costs(exits: int, head: float = 10.0) -> CostTable:
    return CostTable(
        unit="MACs",
        body=(100.0,) * exits,
        head=(*(head,) * (exits - 1), 1.0),
        full=100.0 * exits + 1.0,
    )


def made_logits(
    count: int, exits: int, classes: int, seed: int = 0, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Logits (N, K, C) and labels (N,): easy samples are seen early, hard ones late or never."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    ease = 1 - 0.75 * torch.rand(count, generator=generator)
    shared = torch.randn(count, classes, generator=generator)
    logits = torch.empty(count, exits, classes)
    for k in range(exits):
        noise = torch.randn(count, classes, generator=generator)
        logits[:, k] = 0.8 * shared + 0.6 * noise
        logits[torch.arange(count), k, labels] += (2 + 4 * (k + 1) / exits) * ease
    return scale * logits, labels


def made_records(
    count: int = 300, exits: int = 4, classes: int = 5, *, seed: int = 0, **changes: Any
) -> Records:
    logits, labels = made_logits(count, exits, classes, seed)
    meta = made_meta(exits, **changes)
    return Records.from_logits(logits, labels, meta=meta, signals=made_signals(logits))


def made_signals(logits: Tensor) -> dict[str, Tensor]:
    """What exits with logits (N, K, C) might have learned about themselves: (N, K) each."""
    first, second = logits.topk(2, dim=-1).values.unbind(-1)
    return {"certainty": torch.sigmoid(first - second - 1), "gate": first - second - 2}
