"""Voting: every exit that runs has one vote."""

import torch
from torch import Tensor

from offramp.policies.base import ExitOutputs, Memory, register_policy
from offramp.policies.path import ClassPathPolicy


@register_policy("voting")
class Voting(ClassPathPolicy):
    """Stop when one class has more than this share of all K exits' votes, and answer with it.

    The share is of all exits of the model, not of those that have voted: above one half nobody
    could overtake the leader. Equal votes are decided by the sum of the softmax. The answer's
    softmax is (votes + mean softmax) / (voters + 1). Without such a majority the last exit, which
    knows most, answers alone.
    """

    always = 0.0
    never = 1.0

    def start(
        self, batch: int, *, ids: Tensor | None = None, device: torch.device | None = None
    ) -> Memory:
        """Votes (B, C) and the sum of the softmax (B, C)."""
        votes = torch.zeros(batch, self.num_classes, device=device)
        return votes, torch.zeros_like(votes)

    def follow(self, k: int, outputs: ExitOutputs, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        votes, beliefs = memory
        logits = self.logits(outputs)
        classes = torch.arange(self.num_classes, device=logits.device)
        votes = votes + (classes == logits.argmax(dim=-1, keepdim=True)).float()
        beliefs = beliefs + torch.softmax(logits, dim=-1)
        voters = votes.sum(dim=-1, keepdim=True)
        # Votes are whole and a mean softmax is below 1, so it only decides between equals.
        shares = (votes + beliefs / voters) / (voters + 1)
        answer = shares.clamp_min(torch.finfo(torch.float32).tiny).log()
        return votes.amax(dim=-1) / len(self.thresholds), answer, (votes, beliefs)

    def final_answer(self, k: int, outputs: ExitOutputs, memory: Memory) -> Tensor:
        return self.logits(outputs)
