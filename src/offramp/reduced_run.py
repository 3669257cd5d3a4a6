"""A run whose model carries fewer tokens than it was made to: one training, several strengths."""

from functools import cached_property
from typing import TYPE_CHECKING

from offramp.calibration import OperatingPoint, Records
from offramp.chains import chain
from offramp.chains.reduced import ReducedChain
from offramp.data import DataSource
from offramp.model import MultiExitModel
from offramp.reducers import ReducerSpec, reduced
from offramp.runs import RunFolder

if TYPE_CHECKING:
    from offramp.training.run_config import RunConfig

FOLDER = "reducers"


class ReducedRun(RunFolder):
    """A run's model under another reducer, or another strength of its own.

    Its records have a folder of their own inside the run: ``reducers/tome-r-8/``.
    """

    def __init__(self, run: RunFolder, spec: ReducerSpec) -> None:
        super().__init__(run.path / FOLDER / spec.slug)
        self.run, self.spec = run, spec

    def check(self) -> "ReducedRun":
        self.run.check()
        return self

    @cached_property
    def config(self) -> "RunConfig":
        return self.run.config

    @cached_property
    def data(self) -> DataSource:
        return self.run.data

    @cached_property
    def model(self) -> MultiExitModel:
        return self.run.model.with_reducer(self.spec)


def reduced_run(run: RunFolder, spec: ReducerSpec | None) -> RunFolder:
    """The run with its model under a reducer; None is what it was made with."""
    return run if spec is None else ReducedRun(run, spec)


def settled(run: RunFolder, spec: ReducerSpec) -> ReducerSpec | None:
    """The reducer, or None where the run's model under it would be the one it has.

    Raises:
        OfframpError: for an unknown reducer or option, or a backbone it does not work on.
    """
    model = run.model
    if spec == model.config.reducer:
        return None
    links = reduced(chain(model.backbone, image_size=model.preprocessing.image_size), spec)
    if model.config.reducer is not None or not isinstance(links, ReducedChain):
        return spec
    idle = links.reducer.intact(len(links) - 1) and not list(links.reducer.parameters())
    return None if idle else spec


def point_records(
    run: RunFolder, point: OperatingPoint, split: str, *, progress: bool = True
) -> Records:
    """What a point is judged by: records under its reducer, engine and precision, held against its
    full model."""
    options = {"engine": point.engine, "precision": point.precision}
    records = reduced_run(run, point.reducer).records(split, **options, progress=progress)
    if point.full_model is None:
        return records
    return records.against(run.records(split, **options, progress=progress))
