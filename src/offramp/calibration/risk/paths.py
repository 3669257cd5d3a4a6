"""Paths: settings from the safest to the cheapest, fixed before anything is proved of them.

A proof holds for any path; how far along it one gets depends on how well the risk grows with the
savings. So paths are searched on other samples than those of the proof.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from offramp.calibration.enumeration import Columns, enumerate_settings
from offramp.calibration.front import Measure, locked_exits, measure
from offramp.calibration.path_search import Walk, walk_path
from offramp.calibration.records import Records
from offramp.calibration.records_meta import RecordsMeta
from offramp.calibration.replay import Decisions, replay
from offramp.calibration.risk.losses import Loss
from offramp.calibration.splits import THRESHOLDS
from offramp.calibration.threshold_settings import ThresholdSettings
from offramp.costs.table import CostTable
from offramp.policies.base import Parameters, Policy
from offramp.policies.path import PathPolicy
from offramp.policies.threshold import ThresholdPolicy
from offramp.policies.thresholded import Thresholded
from offramp.registry import Registry

_BLENDS = 4  # settings between two neighbouring prices
_NEAR = (0.4, 0.7, 1.0)  # times the wanted risk: where the search looks closer
_GRID = 100
_LEAST = -np.log(1000)  # below it, −ln C, no score is found


class Step(NamedTuple):
    """One setting of a path."""

    policy: Policy
    active: tuple[int, ...]


@dataclass(frozen=True)
class Quest:
    """What a path is for.

    Attributes:
        family: the policies it is made of.
        fitted: what they were fitted to on other samples.
        loss: whose mean is to be bounded.
        risk: by what.
        costs: what is to be saved.
        meta: where all records come from.
        search, smooth: how thresholds are searched.
    """

    family: type[Policy]
    fitted: Parameters
    loss: Loss
    risk: float
    costs: CostTable
    meta: RecordsMeta
    search: str = "coordinate"
    smooth: bool = True


class PathMaker(ABC):
    """How a path is made.

    Attributes:
        shares: parts of the samples that it looks at, which the proof may not.
    """

    shares: ClassVar[Mapping[str, float]]

    @abstractmethod
    def make(self, quest: Quest, parts: Mapping[str, Records]) -> list[Step]:
        """The path, made from the parts it asked for."""


PATHS: Registry[type[PathMaker]] = Registry("path")


@PATHS.register("per-exit")
class PerExit(PathMaker):
    """A threshold for every exit, along the front of risk and cost on the thresholds' samples."""

    shares: ClassVar[Mapping[str, float]] = {"thresholds": THRESHOLDS}

    def make(self, quest: Quest, parts: Mapping[str, Records]) -> list[Step]:
        return [*_nobody(quest), *_front(_searched(quest, parts["thresholds"]))]


@PATHS.register("shared")
class Shared(PathMaker):
    """One number for all exits, all of them on, as the papers have it; needs no search."""

    shares: ClassVar[Mapping[str, float]] = {}

    def make(self, quest: Quest, parts: Mapping[str, Records]) -> list[Step]:
        exits, family = quest.meta.num_exits, quest.family
        everyone = tuple(range(exits - 1))
        if issubclass(family, Thresholded):
            low = max(family.always, _LEAST)
            grid = np.linspace(family.never, low, _GRID + 1)[1:].tolist()
            members: list[Policy] = [family.shared(at, exits, **quest.fitted) for at in grid]
        else:
            members = list(reversed(family.candidates(exits, **quest.fitted)))
        return [*_nobody(quest), *(Step(policy, everyone) for policy in members)]


def decide_along(path: Sequence[Step], records: Records) -> list[Decisions]:
    """What every setting of a path decides; what they share is computed once."""
    stored, walks = Columns(records), dict[tuple[int, ...], Walk]()
    first, columns = path[0].policy, None
    if isinstance(first, ThresholdPolicy):  # members differ in thresholds alone
        columns = records.readings(first).T.contiguous()
    found = []
    for policy, active in path:
        if isinstance(policy, PathPolicy):
            if active not in walks:
                walks[active] = walk_path(policy, records, active)
            walk = walks[active]
            found.append(walk.decide([policy.thresholds[k] for k in walk.exits]))
        else:
            read = stored.of(policy) if columns is None else columns
            found.append(replay(policy, records, active, columns=read))
    return found


class _Found(NamedTuple):
    """A setting with what it seems to risk and to cost."""

    step: Step
    risk: float
    cost: float


def _searched(quest: Quest, records: Records) -> list[_Found]:
    """Settings worth trying, judged on the samples they were searched on."""
    if issubclass(quest.family, ThresholdPolicy):
        return _threshold_found(quest.family, quest, records)
    settings = enumerate_settings(
        quest.family, records, quest.costs, fitted=quest.fitted, smooth=quest.smooth
    )
    path = [Step(setting.policy, setting.active) for setting in settings]
    decided = decide_along(path, records)
    risks = quest.loss.along(decided, records).mean(axis=0)
    measured = [
        measure(decisions, records, quest.costs, step.active)
        for decisions, step in zip(decided, path, strict=True)
    ]
    triples = zip(path, risks.tolist(), (m.cost for m in measured), strict=True)
    return [_Found(*triple) for triple in triples]


def _threshold_found(family: type[ThresholdPolicy], quest: Quest, records: Records) -> list[_Found]:
    """The search with little loss as worth; risks are read off the smooth curves it goes by."""
    worth = quest.loss.worth(records)
    found = ThresholdSettings(
        family,
        records,
        quest.costs,
        fitted=quest.fitted,
        worth=worth,
        smooth=quest.smooth,
        search=quest.search,
    )
    for times in _NEAR:
        found.sweep.refine(partial(_safe, quest.loss, times * quest.risk))
    triples = []
    for leavers in found.sweep.between(_BLENDS):
        setting = found.setting(leavers)
        step = Step(setting.policy, setting.active)
        risk = quest.loss.lost(found.search.expected(leavers))
        triples.append(_Found(step, risk, setting.measure.cost))
    return triples


def _safe(loss: Loss, risk: float, found: Measure) -> bool:
    """Whether the mean loss is so small."""
    return loss.lost(found.accuracy) <= risk


def _front(found: Iterable[_Found]) -> list[Step]:
    """Settings that nothing safer undercuts, from the safest to the cheapest."""
    path: list[Step] = []
    cheapest = np.inf
    for step, _, cost in sorted(found, key=lambda one: (one.risk, one.cost)):
        if cost < cheapest:
            path.append(step)
            cheapest = cost
    return path


def _nobody(quest: Quest) -> list[Step]:
    """The setting at which nobody leaves early, where a family has one of its own."""
    if not issubclass(quest.family, Thresholded):
        return []
    never = quest.family.shared(quest.family.never, quest.meta.num_exits, **quest.fitted)
    return [Step(never, locked_exits(quest.meta.standalone))]
