"""What a watch remembers, and what it has to say."""

from pydantic import BaseModel, ConfigDict, Field


class Comparison(BaseModel):
    """One test of the newest look: ``p`` is corrected for all looks and tests."""

    what: str
    samples: int
    p: float


class Alarm(BaseModel):
    """When drift was found, and by which test."""

    at: int
    found: Comparison


class State(BaseModel):
    """What a watch has to remember: counts and the newest samples, never images."""

    model_config = ConfigDict(extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    point: str
    reference: str
    window: int
    alpha: float
    seen: int = 0
    looks: int = 0
    position: int = 0
    alarm: Alarm | None = None
    tests: list[Comparison] = []
    exits: list[int] = []
    readings: list[float] = []
    cut: list[bool] = []


class Verdict(BaseModel):
    """What a watch has to say.

    Attributes:
        drift: whether live samples differ from the reference; stays true once found.
        sentence: the same for people.
        samples, looks: so far; ``until_look`` samples are missing for the next look.
        since: number of the sample at which drift was found.
        tests: of the newest look.
        exit_share: live, over the newest samples that are remembered; beside it the reference's.
        confidence: mean of them (in regression the mean value), and the reference's.
        cost_share: mean cost of them over the unmodified model's, and the reference's.
    """

    drift: bool
    sentence: str
    samples: int
    looks: int
    until_look: int
    since: int | None
    alpha: float
    tests: list[Comparison]
    exit_names: list[str]
    exit_share: list[float] | None
    expected_share: list[float]
    confidence: float | None
    expected_confidence: float
    cost_share: float | None
    expected_cost_share: float
