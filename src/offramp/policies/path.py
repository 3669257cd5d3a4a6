"""Path policies: the score sums up what all exits so far said, not what one of them says."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from offramp.errors import OfframpError
from offramp.policies.arguments import whole
from offramp.policies.base import ExitOutputs, Memory, Parameters
from offramp.policies.thresholded import Thresholded

if TYPE_CHECKING:
    from offramp.calibration.records import Records


class PathPolicy(Thresholded):
    """Stop when a score of the path so far exceeds the exit's threshold.

    Score and answer depend on which exits are active, but on no threshold: one walk over records
    gives all that `offramp.calibration.path_search` needs. Answers are float32.
    """

    @abstractmethod
    def follow(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Score (B,) after exit ``k``, answer (B, C) of whoever leaves there, and memory."""

    def step(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        return self.scored_step(k, outputs, memory)[:3]

    def scored_step(
        self, k: int, outputs: ExitOutputs, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory, Tensor]:
        score, answer, memory = self.follow(k, outputs, memory)
        return score > self.thresholds[k], answer, memory, score

    def final_answer(self, k: int, outputs: ExitOutputs, memory: Memory) -> Tensor:
        return self.follow(k, outputs, memory)[1]


class ClassPathPolicy(PathPolicy):
    """A path policy that remembers something per class.

    Args:
        thresholds: (K,) one per exit, in units of the score; the last is ignored.
        num_classes: C, which a memory must know before the first exit has spoken.
    """

    def __init__(self, thresholds: Sequence[float], num_classes: int) -> None:
        super().__init__(thresholds)
        self.num_classes = whole(self.name, "num_classes", num_classes)

    def parameters(self) -> Parameters:
        return {**super().parameters(), "num_classes": self.num_classes}

    @classmethod
    def fit(cls, records: "Records", **options: Any) -> Parameters:
        """The number of classes, and what is told."""
        classes = records.outputs(0, slice(0, 1)).logits.shape[-1]
        return {"num_classes": classes, **cls.options, **options}

    def logits(self, outputs: ExitOutputs) -> Tensor:
        """The exit's logits (B, C), or a refusal where there are other classes."""
        return checked_logits(self.name, outputs, self.num_classes)


def checked_logits(name: str, outputs: ExitOutputs, num_classes: int) -> Tensor:
    """Logits (B, C) in float32, or `OfframpError` where C is not what the policy was made for."""
    found = outputs.logits.shape[-1]
    if found != num_classes:
        raise OfframpError(
            f"policy {name!r} was made for {num_classes} classes, but the exits know {found}"
        )
    return outputs.logits.float()
