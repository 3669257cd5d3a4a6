"""Where records come from: the model and its exits, the data, the engine."""

from pydantic import BaseModel, ConfigDict

from offramp.costs.table import CostTable


class RecordsMeta(BaseModel):
    """Where records come from."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    dataset: str
    split: str
    exit_names: list[str]
    positions: list[int]
    blocks: int
    full_blocks: int | None = None
    standalone: list[bool]
    task: str = "classification"
    engine: str = "torch"
    precision: str = "float32"
    versions: dict[str, str] = {}
    num_threads: int | None = None
    costs: CostTable | None = None

    @property
    def num_exits(self) -> int:
        return len(self.exit_names)

    @property
    def blocks_run(self) -> list[int]:
        """Blocks run by a sample that leaves at exit k: (K,)."""
        return [*self.positions, self.blocks]

    @property
    def baseline_blocks(self) -> int:
        """Blocks of the unmodified model: all, unless the chain adds models to it."""
        return self.blocks if self.full_blocks is None else self.full_blocks
