"""Measured time per segment and head on an engine: a head can cost twice its share of MACs."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from offramp.costs.clock import timed
from offramp.costs.environment import describe_hardware
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies import Confidence, Policy
from offramp.runtime.engines.engine import ENGINES, CompiledSegment, EngineOptions, Program
from offramp.runtime.hosting import hosting
from offramp.runtime.parts import Part, build_parts
from offramp.runtime.static import static_program

if TYPE_CHECKING:
    from offramp.model import MultiExitModel


def latency_table(
    model: "MultiExitModel",
    images: Tensor,
    batch_sizes: Iterable[int] = (1, 8, 64),
    *,
    engine: str = "torch",
    options: EngineOptions | None = None,
    repeats: int = 15,
    warmup: int = 3,
) -> dict[int, CostTable]:
    """Median milliseconds per image of every body and head, for each batch size.

    Three programs take turns on the engine: the chain in one piece, its bodies cut at every exit
    but without heads, and the same with every head and the decision behind it. A head's time is
    what its segment takes longer than the bare body, so it holds everything an active exit costs:
    head, decision, waiting for the answer, and the cut itself. Bodies are scaled to add up to the
    undivided chain, which merged segments come close to: the unmodified backbone, or what a reducer
    leaves of it.

    Args:
        images: preprocessed images (N, 3, H, W), repeated where a batch needs more.
        batch_sizes: images per batch.
        engine, options: what runs them, and how.
        repeats: rounds the medians are taken over, after ``warmup`` unmeasured ones.

    Raises:
        OfframpError: when there are no images or a batch size is below 1.
    """
    if not len(images):
        raise OfframpError("measuring latency needs at least one image")
    sizes = list(batch_sizes)
    if min(sizes) < 1:
        raise OfframpError(f"batch size {min(sizes)}, but it must be at least 1")
    options = options or EngineOptions()
    build = ENGINES.get(engine)(options)
    never = Confidence.shared(Confidence.never, model.num_exits)
    everyone = range(len(model.exits))

    def parts(policy: Policy | None, heads: bool) -> list[Part]:
        place, kind = build.device, build.part_dtype
        return build_parts(model, everyone, policy, heads=heads, device=place, dtype=kind)

    with_heads = build.prepare(parts(never, True))
    bare = build.prepare(parts(None, False))
    modules = {id(m): m for m in (model.chain.undivided, model.chain.baseline)}  # mostly one
    wholes = [
        static_program(module, model.chain.image_size, engine, options=options)
        for module in modules.values()
    ]
    tables = {}
    with hosting(with_heads):
        for size in sizes:
            batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
            batch = batch.to(device=with_heads.device, dtype=with_heads.dtype)
            rounds = [
                Round(
                    per_segment(with_heads, (batch,)),
                    per_segment(bare, (batch,)),
                    [timed(whole, batch, device=batch.device)[0] / size for whole in wholes],
                )
                for _ in range(warmup + repeats)
            ][warmup:]
            tables[size] = _table(rounds, size, repeats, engine, with_heads.precision)
    return tables


class Round(NamedTuple):
    """Milliseconds per image of each segment with and without its head, and of whole models."""

    segment: list[float]
    body: list[float]
    whole: list[float]
    """The undivided chain, and the baseline where that is another."""


def per_segment(program: Program, flow: tuple[Tensor, ...]) -> list[float]:
    """Milliseconds per image of each segment when nobody leaves.

    Args:
        flow: what the first segment takes: images (B, 3, H, W), and the policy's fresh memory.
    """
    took, batch = [], len(flow[0])
    for segment in program.segments:
        ms, flow = timed(_run, segment, flow, device=program.device)
        took.append(ms / batch)
    return took


def _run(segment: CompiledSegment, flow: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One segment, and reading how many stop, as a runner does."""
    layout, returned = segment.layout, segment.call(*flow)
    if "stop" in layout.says:
        returned[len(layout.flow) + layout.says.index("stop")].sum().item()
    return returned[: len(layout.flow)]


def _table(
    rounds: Sequence[Round], size: int, repeats: int, engine: str, precision: str
) -> CostTable:
    segment = _medians(r.segment for r in rounds)
    bare = _medians(r.body for r in rounds)
    wholes = _medians(r.whole for r in rounds)
    body = [wholes[0] * ms / sum(bare) for ms in bare]
    head = [max(0.0, whole - alone) for whole, alone in zip(segment, body, strict=True)]
    return CostTable(
        unit="ms",
        body=tuple(body),
        head=(*head[:-1], 0.0),  # the backbone's own head is part of the last body
        full=wholes[-1],
        meta={
            "batch_size": size,
            "repeats": repeats,
            "engine": engine,
            "precision": precision,
            "hardware": describe_hardware(),
        },
    )


def _medians(rounds: Iterable[list[float]]) -> list[float]:
    return [median(times) for times in zip(*rounds, strict=True)]
