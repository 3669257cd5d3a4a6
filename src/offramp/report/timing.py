"""Measured time as the report reads it: ``benchmark.json``, and a latency table where there is one.

``benchmark.json`` holds ``point``, the name of the operating point that was timed, and ``results``,
one `BenchResult` per engine. Optional: ``latency``, a `CostTable` in ms per batch size, from which
the time of every front point and static exit follows.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.runtime.benchmark import BatchBench, BenchResult

NOT_MEASURED = "not measured: run offramp bench"


@dataclass(frozen=True)
class Timing:
    """What was timed, empty where nothing was.

    Attributes:
        point: operating point the results belong to.
        results: one per engine.
        table: latencies between exits, in ms per image.
    """

    point: str | None = None
    results: list[BenchResult] = field(default_factory=list)
    table: CostTable | None = None

    def batches(self, point: str) -> list[BatchBench]:
        """Measurements of an operating point on the first engine, smallest batch first."""
        if point != self.point or not self.results:
            return []
        return sorted(self.results[0].batches, key=lambda batch: batch.batch_size)

    @property
    def measured(self) -> bool:
        return bool(self.results) or self.table is not None

    @property
    def where(self) -> str:
        """Engine and batch size of the times in plots and headlines."""
        engine = self.results[0].engine if self.results else "torch"
        size = self.table.meta.get("batch_size") if self.table else None
        if size is None and self.results:
            size = min(batch.batch_size for batch in self.results[0].batches)
        return engine if size is None else f"{engine}, batch {size}"


def read_timing(
    benchmark: Mapping[str, Any] | None,
    *,
    fingerprints: Collection[str] | None = None,
    table: CostTable | None = None,
) -> Timing:
    """Read the content of ``benchmark.json``; measurements of other weights are left out.

    Args:
        fingerprints: of the model at hand, under any of its reducers; None accepts any.
        table: latency table to use when the benchmark holds none.

    Raises:
        OfframpError: when a result is not what ``offramp bench`` writes.
    """
    if benchmark is None:
        return Timing(table=table)
    try:
        results = [BenchResult.model_validate(result) for result in benchmark["results"]]
        tables = [CostTable.model_validate(t) for t in benchmark.get("latency", {}).values()]
    except (KeyError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise OfframpError(f"benchmark.json: not a benchmark ({reason}); run offramp bench") from (
            None
        )
    current = [r for r in results if r.batches and _among(r.fingerprint, fingerprints)]
    if results and not current:
        return Timing(table=table)
    tables.sort(key=lambda found: found.meta.get("batch_size", 0))
    return Timing(benchmark.get("point"), current, tables[0] if tables else table)


def _among(fingerprint: str, known: Collection[str] | None) -> bool:
    return known is None or fingerprint in known
