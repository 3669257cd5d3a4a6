"""Exits of invented samples: how hard these are is one number, so drift is one, too."""

import torch

from offramp.calibration import OperatingPoint, Records, RecordsMeta, calibrate
from offramp.costs.table import CostTable
from offramp.monitor.reference import Reference, Sight

EXITS, CLASSES = 4, 5
COSTS = CostTable(unit="MACs", body=(100.0,) * EXITS, head=(5.0, 5.0, 5.0, 1.0), full=401.0)


def made_records(count: int = 600, *, seed: int = 0, noise: float = 1.0) -> Records:
    """More noise: less sure, later exits."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    ease = 1 - 0.75 * torch.rand(count, generator=draw)
    logits = torch.randn(count, EXITS, CLASSES, generator=draw)
    for k in range(EXITS):
        logits[torch.arange(count), k, labels] += (2 + 4 * (k + 1) / EXITS) * ease / noise
    meta = RecordsMeta(
        fingerprint="0123456789abcdef",
        dataset="made",
        split="calibration",
        exit_names=["block 1", "block 2", "block 3", "final"],
        positions=[1, 2, 3],
        blocks=EXITS,
        standalone=[True] * EXITS,
        costs=COSTS,
    )
    return Records.from_logits(logits, labels, meta=meta)


def made_point() -> OperatingPoint:
    return calibrate(made_records(seed=999), max_cost=0.6)


def stream(point: OperatingPoint, count: int, *, seed: int, noise: float = 1.0) -> Sight:
    """What a runner at ``point`` would show of fresh samples."""
    return Reference(point, made_records(count, seed=100_000 + seed, noise=noise)).sight
