"""What a policy is: a rule that decides, for every sample on its own, whether to stop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.registry import Registry

if TYPE_CHECKING:
    from offramp.calibration.records import Records
    from offramp.costs.table import CostTable

Memory = tuple[Tensor, ...]
Parameters = dict[str, Any]


class ExitOutputs(Protocol):
    """What an exit said: ``logits`` (B, C), and one attribute per signal it declares."""

    @property
    def logits(self) -> Tensor: ...


class Policy(ABC):
    """When to stop: `start` a batch, then `step` after every active exit and after the last.

    Tensors in, tensors out; no loop over samples and nothing that depends on who else is in the
    batch, so live runs, compacted batches and replay over records decide the same.

    Attributes:
        name: name in the registry.
        needs: signals, besides the logits, that the exits must give.
        tasks: kinds of answer it can judge; most read the probabilities of classes.
        learns: whether `fit` learns from labels, on samples that may not choose thresholds too.
        options: what `fit` may be told, with the values it takes otherwise.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    learns: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        """Memory of a fresh batch: tensors with ``batch`` rows, compacted with the state.

        ``ids`` (B,) int64 name the samples for policies that draw random numbers.
        """

    @abstractmethod
    def step(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Decide after exit ``k`` (0 … K-1, counted among all exits, active or not).

        Returns ``(stop, answer, memory)``: stop (B,) bool, answer (B, C) for whoever leaves here.
        At the last exit stopping is forced by the caller.
        """

    def scored_step(
        self, k: int, outputs: ExitOutputs, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory, Tensor]:
        """`step`, and the number (B,) the decision hung on; 1 and 0 for stop and go by default."""
        stop, answer, memory = self.step(k, outputs, memory)
        return stop, answer, memory, stop.float()

    def final_answer(self, k: int, outputs: ExitOutputs, memory: Memory) -> Tensor:
        """The answer (B, C) at the last exit ``k``, where stopping needs no decision."""
        return self.step(k, outputs, memory)[1]

    @abstractmethod
    def parameters(self) -> Parameters:
        """JSON-able arguments that build this policy again."""

    @classmethod
    def fit(cls, records: "Records", **options: Any) -> Parameters:
        """What the family must learn from records before it can run: arguments of the class.

        Args:
            options: some of the family's `options`.
        """
        return {}

    @classmethod
    def check_options(cls, given: Mapping[str, Any]) -> None:
        """Raise `OfframpError` for options that the family does not have."""
        for name, value in given.items():
            if name not in cls.options:
                known = ", ".join(cls.options) or "none"
                raise OfframpError(f"policy {cls.name!r} has no option {name!r} (known: {known})")
            truth = isinstance(cls.options[name], bool)
            if truth != isinstance(value, bool):
                wanted = "true or false" if truth else "a number"
                raise OfframpError(
                    f"policy {cls.name!r}: {name} = {value!r}, but it must be {wanted}"
                )

    @classmethod
    def full_prediction(cls, records: "Records", **fitted: Any) -> Tensor | None:
        """What the full model says (N,), where that is not what the last exit says alone."""
        return None

    @classmethod
    @abstractmethod
    def candidates(cls, num_exits: int, **fitted: Any) -> list[Self]:
        """A spread of members of the family, from the quickest to one that never stops early.

        ``fitted`` is what `fit` gave.
        """

    @classmethod
    def propose(
        cls, records: "Records", costs: "CostTable", active: Sequence[int], **fitted: Any
    ) -> list[Self]:
        """Members worth trying on these records with these early exits on."""
        return cls.candidates(records.num_exits, **fitted)

    def check(self, num_exits: int) -> None:
        """Raise `OfframpError` when this policy does not fit a model with ``num_exits`` exits."""
        return

    @classmethod
    def check_task(cls, task: str) -> None:
        """Raise `OfframpError` when this family cannot judge the answers of a task."""
        if task not in cls.tasks:
            fitting = [name for name in POLICIES.names() if task in POLICIES.get(name).tasks]
            raise OfframpError(
                f"policy {cls.name!r} is for {' and '.join(cls.tasks)}, but the model is for "
                f"{task} (use: {', '.join(fitting)})"
            )

    def to_config(self) -> Parameters:
        """JSON-able description that `policy_from_config` reads."""
        return {"name": self.name, **self.parameters()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(repr(self.to_config()))

    def __repr__(self) -> str:
        listed = ", ".join(f"{key}={value}" for key, value in self.parameters().items())
        return f"{type(self).__name__}({listed})"


class ScalarPolicy(Policy):
    """A policy that reads one scalar per exit and answers with that exit's logits.

    Reading and deciding are separate, so that replay over records decides on stored scalars
    through the very code that runs live.
    """

    @abstractmethod
    def read(self, k: int, outputs: ExitOutputs) -> Tensor:
        """The scalar (B,) this policy reads from exit ``k``; a function of that exit alone."""

    @abstractmethod
    def decide(self, k: int, reading: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Turn a reading (B,) into ``(stop, memory)``; stop (B,) bool."""

    def column(self) -> str | None:
        """Name of the scalar in `offramp.calibration.Records` equal to `read`, if it is stored."""
        return None

    def step(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        return self.scored_step(k, outputs, memory)[:3]

    def scored_step(
        self, k: int, outputs: ExitOutputs, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory, Tensor]:
        score = self.read(k, outputs)
        stop, memory = self.decide(k, score, memory)
        return stop, outputs.logits, memory, score.float()

    def final_answer(self, k: int, outputs: ExitOutputs, memory: Memory) -> Tensor:
        return outputs.logits  # reading what nobody decides on would be idle work


POLICIES: Registry[type[Policy]] = Registry("policy")
P = TypeVar("P", bound=type[Policy])


def register_policy(name: str) -> Callable[[P], P]:
    """File a policy class under ``name``: ``@register_policy("confidence")``."""

    def add(entry: P) -> P:
        entry.name = name
        POLICIES.register(name)(entry)
        return entry

    return add


def policy_from_config(config: Parameters) -> Policy:
    """Build a policy from `Policy.to_config`, or raise `OfframpError` naming the key."""
    parameters = dict(config)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise OfframpError(f"policy: key 'name' is missing (known: {', '.join(POLICIES.names())})")
    entry = POLICIES.get(name)
    try:
        return entry(**parameters)
    except TypeError as error:
        reason = str(error).split("__init__() ")[-1]
        raise OfframpError(f"policy {name!r}: {reason}") from None
