"""From losses along a path to the last setting whose risk is proved.

A path is a list of settings from the safest to the cheapest, fixed before the losses are seen.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np

from offramp.calibration.risk.bounds import (
    Floats,
    betting,
    conformal_level,
    hoeffding_bentkus,
    samples_needed,
)
from offramp.calibration.risk.fixed_sequence import last_rejected
from offramp.registry import Registry

_SLACK = 1e-12


class Level(NamedTuple):
    """What is to be proved of losses.

    Attributes:
        risk: ε, what the mean loss may be.
        delta: probability that the statement may be wrong.
        bound: largest loss there is.
        binary: losses, with the negative ones counted as 0, are only 0 or ``bound``.
    """

    risk: float
    delta: float
    bound: float = 1.0
    binary: bool = False


class Method(ABC):
    """How the last setting is chosen, and what is then known of it.

    Attributes:
        name: name in the registry.
        title: for people.
        takes_delta: whether the statement has a probability of being wrong.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    takes_delta: ClassVar[bool]

    @abstractmethod
    def choose(self, losses: Floats, level: Level) -> int | None:
        """Index of the chosen setting.

        Args:
            losses: (n, m) of n independent samples, in an order that does not depend on them, at m
                settings of a path.
        """

    @abstractmethod
    def certainty(self, delta: float) -> str:
        """How the sentence of the promise begins."""

    def needed(self, level: Level) -> int:
        """Samples without any loss that prove the level."""
        return samples_needed(level.risk, level.delta, bound=level.bound)


METHODS: Registry[type[Method]] = Registry("method")


@METHODS.register("ltt")
class LearnThenTest(Method):
    """Learn-then-Test: p-values of Hoeffding and Bentkus, tested along the path.

    Angelopoulos et al., arXiv 2110.01052. Negative losses count as 0. For losses of 0 and 1 the
    p-value is the exact binomial tail.
    """

    name, title, takes_delta = "ltt", "Learn-then-Test, Hoeffding–Bentkus", True

    def choose(self, losses: Floats, level: Level) -> int | None:
        means = np.maximum(losses, 0).mean(axis=0)
        p_values = hoeffding_bentkus(
            means, len(losses), level.risk, bound=level.bound, binary=level.binary
        )
        return last_rejected(p_values, level.delta)

    def certainty(self, delta: float) -> str:
        return f"with probability at least {100 * (1 - delta):g} % over the calibration draw, "


@METHODS.register("ucb")
class UpperBound(LearnThenTest):
    """Upper confidence bound by betting (Waudby-Smith and Ramdas), below ε along the path.

    Bates et al., JACM 2021. Losses may be negative and make up for others.
    """

    name, title = "ucb", "upper confidence bound, Waudby-Smith–Ramdas"

    def choose(self, losses: Floats, level: Level) -> int | None:
        p_values = betting(losses, level.risk, level.delta, bound=level.bound)
        return last_rejected(p_values, level.delta)


@METHODS.register("crc")
class ConformalRiskControl(Method):
    """Conformal risk control: the bound holds on average over calibration draws.

    Angelopoulos et al., ICLR 2024. It needs losses that grow along the path for every sample, so
    each sample is charged the largest loss it had so far; negative ones count as 0.
    """

    name, title, takes_delta = "crc", "conformal risk control", False

    def choose(self, losses: Floats, level: Level) -> int | None:
        grown = np.maximum(np.maximum.accumulate(losses, axis=1), 0)
        admitted = conformal_level(len(losses), level.risk, bound=level.bound)
        return _last(grown.mean(axis=0) <= admitted + _SLACK)

    def certainty(self, delta: float) -> str:
        return "on average over calibration draws, "

    def needed(self, level: Level) -> int:
        return int(np.ceil(level.bound / level.risk - 1 - 1e-9))


@METHODS.register("naive")
class Naive(Method):
    """The cheapest setting whose mean loss is small enough on the samples; nothing is proved."""

    name, title, takes_delta = "naive", "naive choice, nothing is proved", False

    def choose(self, losses: Floats, level: Level) -> int | None:
        return _last(losses.mean(axis=0) <= level.risk + _SLACK)

    def certainty(self, delta: float) -> str:
        return "on the samples it was chosen on, "

    def needed(self, level: Level) -> int:
        return 1


def _last(admitted: np.ndarray) -> int | None:
    found = np.flatnonzero(admitted)
    return int(found[-1]) if len(found) else None
