"""What a frontier run found: who is how accurate and how fast, and what that says."""

from statistics import median, quantiles
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Entry(BaseModel):
    """One model on one engine."""

    model_config = ConfigDict(extra="ignore")  # what `Frontier.report` adds

    name: str
    kind: Literal["static", "dynamic"]
    engine: str
    precision: str
    image_size: tuple[int, int]
    parameters: int
    macs: float = Field(description="per image, attention products included; the mean if dynamic")
    accuracy: float | None = Field(description="top-1 in percent; None where nobody knows it")
    task: str | None = Field(description="what the accuracy was measured on")
    source: str | None = Field(description="where the accuracy comes from")
    weights: str | None = Field(default=None, description="which published weights it is of")
    rounds_ms: list[float] = Field(min_length=1, description="milliseconds per image, by round")

    @property
    def ms(self) -> float:
        """Median milliseconds per image."""
        return median(self.rounds_ms)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the rounds' milliseconds per image."""
        if len(self.rounds_ms) < 2:
            return self.ms, self.ms
        low, _, high = quantiles(self.rounds_ms, n=4, method="inclusive")
        return low, high

    def time_over(self, other: "Entry") -> float:
        """This model's time over another's: median of the rounds' ratios, for they were paired."""
        return median(
            mine / theirs for mine, theirs in zip(self.rounds_ms, other.rounds_ms, strict=True)
        )


class Verdict(BaseModel):
    """Whether static models make a dynamic one superfluous.

    Attributes:
        rivals: static models at least as accurate and at least as fast, the fastest first.
        compared: static models whose accuracy on the same task is known.
        sentence: the same in words.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    engine: str
    rivals: list[str]
    compared: int
    sentence: str


class Frontier(BaseModel):
    """Models timed in one run, with everything needed to judge it."""

    model_config = ConfigDict(extra="ignore")  # what `report` adds

    batch_size: int
    images: int = Field(description="per model and round")
    rounds: int
    fingerprint: str | None = Field(default=None, description="of the dynamic model")
    environment: dict[str, Any]
    entries: list[Entry]

    @property
    def engines(self) -> list[str]:
        return list(dict.fromkeys(entry.engine for entry in self.entries))

    def on(self, engine: str) -> list[Entry]:
        """An engine's entries, the fastest first."""
        return sorted((e for e in self.entries if e.engine == engine), key=lambda e: e.ms)

    def find(self, name: str, engine: str) -> Entry:
        """The entry of a model on an engine; raises StopIteration where there is none."""
        return next(e for e in self.entries if (e.name, e.engine) == (name, engine))

    def best(self, engine: str, task: str) -> list[Entry]:
        """Static models of known accuracy that no other beats in both, the fastest first."""
        found: list[Entry] = []
        for entry in sorted(self._static(engine, task), key=lambda e: (e.ms, -_known(e))):
            if not found or _known(entry) > _known(found[-1]):
                found.append(entry)
        return found

    def verdicts(self) -> list[Verdict]:
        """One for every dynamic entry."""
        return [self._verdict(entry) for entry in self.entries if entry.kind == "dynamic"]

    def report(self) -> dict[str, Any]:
        """All of it as JSON, with medians and verdicts; `model_validate` reads it again."""
        entries = [{**entry.model_dump(mode="json"), "ms": entry.ms} for entry in self.entries]
        verdicts = [verdict.model_dump(mode="json") for verdict in self.verdicts()]
        return {**self.model_dump(mode="json"), "entries": entries, "verdicts": verdicts}

    def _static(self, engine: str, task: str | None) -> list[Entry]:
        known = [e for e in self.on(engine) if e.kind == "static" and e.accuracy is not None]
        return [entry for entry in known if entry.task == task]

    def _verdict(self, dynamic: Entry) -> Verdict:
        static = self._static(dynamic.engine, dynamic.task)
        rivals = [
            entry
            for entry in static
            if _known(entry) >= _known(dynamic) and entry.time_over(dynamic) <= 1
        ]
        rivals.sort(key=lambda entry: entry.time_over(dynamic))
        return Verdict(
            name=dynamic.name,
            engine=dynamic.engine,
            rivals=[entry.name for entry in rivals],
            compared=len(static),
            sentence=_sentence(dynamic, static, rivals),
        )


def _sentence(dynamic: Entry, static: list[Entry], rivals: list[Entry]) -> str:
    where = f"on {dynamic.engine}"
    if not static:
        return (
            f"{where}: no static model here has a known accuracy on {dynamic.task}, so nothing is "
            "said about them (name their runs, or give --data)"
        )
    if rivals:
        first = rivals[0]
        others = ", ".join(entry.name for entry in rivals[1:])
        more = f"; so {'do' if len(rivals) > 2 else 'does'} {others}" if others else ""
        return f"{where}: static {first.name} already does this ({_against(first, dynamic)}){more}"
    as_accurate = [entry for entry in static if _known(entry) >= _known(dynamic)]
    if as_accurate:
        near = min(as_accurate, key=lambda entry: entry.time_over(dynamic))
        return (
            f"{where}: no static model here is as accurate and as fast; the fastest one as "
            f"accurate is {near.name} ({_against(near, dynamic)})"
        )
    near = max(static, key=_known)
    return (
        f"{where}: no static model here is as accurate; the most accurate is {near.name} "
        f"({_against(near, dynamic)})"
    )


def _against(static: Entry, dynamic: Entry) -> str:
    difference = f"{_known(static) - _known(dynamic):+.2f}".replace("-", "−")
    return f"{difference} points, {static.time_over(dynamic):.2f}× the time"


def _known(entry: Entry) -> float:
    assert entry.accuracy is not None
    return entry.accuracy
