"""What a comparison found, as it is written down."""

from statistics import mean, stdev
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class Spread(BaseModel):
    """A figure over seeds: mean, standard deviation (None for one seed) and the single values."""

    model_config = ConfigDict(extra="forbid")

    mean: float
    deviation: float | None
    values: list[float]

    @classmethod
    def of(cls, values: list[float | None]) -> Self | None:
        """The spread of what every seed reached; None when one did not."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(
            mean=mean(known), deviation=stdev(known) if len(known) > 1 else None, values=known
        )

    def __str__(self) -> str:
        return f"{self:.2f}"

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}}" + (f" ± {self.deviation:{spec}}" if self.deviation else "")


class Timed(BaseModel):
    """A point measured end to end on an engine."""

    model_config = ConfigDict(extra="forbid")

    engine: str
    max_drop: float = Field(description="promised, against the run's own full model")
    batch_size: int
    ms: float = Field(description="per image")
    speedup: float = Field(description="over the run's own unmodified backbone, same run")
    accuracy: float | None = Field(default=None, description="on the held-out split")


class Method(BaseModel):
    """One recipe under one policy, over its seeds.

    What is called accuracy here and in `Comparison` is in percent, and in regression the MAE.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    policy: str
    runs: list[str]
    recipe: dict[str, Any] = Field(description="as resolved, of the first seed")
    exits: dict[str, Spread] = Field(description="accuracy of every exit")
    full: Spread = Field(description="accuracy of the full model")
    at_budget: dict[str, Spread | None] = Field(
        description="accuracy by the share of the reference's MACs that may be spent"
    )
    at_drop: dict[str, Spread | None] = Field(
        description="share of the reference's MACs by what may be lost against the reference"
    )
    area: Spread | None = Field(description="mean accuracy over all budgets that all can keep")
    training_seconds: Spread | None
    timed: list[Timed] = []
    curve: list[tuple[float, float]] = Field(description="held-out cost and accuracy, first seed")


class Comparison(BaseModel):
    """Methods on one data set against one reference model."""

    model_config = ConfigDict(extra="forbid")

    task: str = "classification"
    dataset: str
    split: str
    samples: int
    reference: str = Field(description="run whose full model budgets and drops refer to")
    reference_accuracy: float
    reference_macs: float
    budgets: list[float]
    drops: list[float]
    lowest: float = Field(description="cheapest budget that every method can keep")
    methods: list[Method]
    environment: dict[str, Any]
