"""JEI-DNN's second stage: gates and heads in turn, each given what the other has learned."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.policies.jei_dnn import ExitMass, exit_mass
from offramp.policies.stopping import stopping_mass
from offramp.training.every_image import EveryImage
from offramp.training.features import Features
from offramp.training.gating import (
    Balance,
    Coupling,
    Criterion,
    Targets,
    best_exit,
    class_balance,
    coupled_loss,
    exit_values,
    gate_loss,
    lessons,
)
from offramp.training.kept_features import HeadsOnKeptFeatures, KeptFeatures
from offramp.training.recipe import Step
from offramp.training.validation import Figures


class Turns(BaseModel):
    """How gates and heads are trained in turn; the card of released discrepancies names each."""

    model_config = ConfigDict(extra="forbid")

    every: int = Field(default=200, gt=0, description="steps of gates, then so many of heads …")
    counting: Literal["global", "per_epoch"] = Field(
        default="global",
        description="steps count through the stage; released: per_epoch, so that an epoch of fewer "
        "trains the gates alone",
    )
    gates_see: Literal["train", "validation"] = Field(
        default="train",
        description="images that gates learn from; on training images early heads and backbone are "
        "better than they will be, which tells gates to let go too soon",
    )
    criterion: Criterion = Field(
        default="loss", description="what an exit is judged by besides its cost"
    )
    targets: Targets = Field(
        default="subsequent",
        description="what gates behind the best say; or regret: every gate learns whether stopping "
        "costs less than going on, weighted by how much, and is read by itself (policy stopping)",
    )
    balance: Balance = Field(
        default="cumulative",
        description="weight of the ones among a gate's targets; or exact; with regret none",
    )
    coupling: Coupling = Field(
        default="detached", description="as_released, the gates' weights cancel in the heads' loss"
    )

    @model_validator(mode="after")
    def _weighted_once(self) -> Self:
        if self.targets == "regret" and self.balance != "none":
            raise ValueError(
                f"balance = {self.balance!r} beside targets = 'regret', which weight every sample "
                "already (use none)"
            )
        return self

    @property
    def mass(self) -> Callable[[Tensor], ExitMass]:
        """Where gates (B, L-1) in (0, 1) let samples leave."""
        return stopping_mass if self.targets == "regret" else exit_mass


class Mixture(NamedTuple):
    """The gates' decisions on the validation split: accuracy in percent, mean cost over c_L."""

    accuracy: float
    cost: float


class GatesAndHeads(HeadsOnKeptFeatures):
    """For ``every`` steps the gates learn which exit is best, then the heads what leaves there.

    Args:
        costs: (L,) of leaving at each exit, over that of the last.
        tradeoff: λ, the price of cost in units of the criterion.
        done: called with what the gates achieve on the validation split at the stage's last epoch.
        epochs: of the stage.
    """

    positive: Tensor  # (L-1,) weight of the ones
    counts: Tensor  # (L,) validation samples by their best exit
    begun: Tensor  # () steps before this epoch
    passed: Tensor  # () epochs

    def __init__(
        self,
        model: MultiExitModel,
        features: KeptFeatures,
        *,
        last: bool,
        turns: Turns,
        costs: Sequence[float],
        tradeoff: float,
        epochs: int,
        done: Callable[[MultiExitModel, Mixture], None],
    ) -> None:
        super().__init__(model, features, last=last)
        for k, head in enumerate(model.heads):
            if "gate" not in head.says._fields:
                raise OfframpError(
                    f"recipe jei_dnn trains gates, but exits[{k}] has none (use layout jei_dnn, or "
                    "the option gate: true on every head)"
                )
        self.turns, self.tradeoff, self.epochs, self.done = turns, tradeoff, epochs, done
        self.steps, early = 0, len(model.exits)
        self.heard: list[tuple[float, float, int]] = []
        self.held_out: list[tuple[Features, Tensor]] = []
        self.costs = torch.tensor(list(costs))
        # Direct buffers are part of a checkpoint.
        self.register_buffer("positive", torch.ones(early))
        self.register_buffer("counts", torch.zeros(early + 1))
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))
        self.register_buffer("passed", torch.zeros((), dtype=torch.int64))

    def gating(self, step: Step) -> bool:
        """Whether it is the gates' turn; every stage, or epoch, begins with it."""
        before = int(self.begun) if self.turns.counting == "per_epoch" else 0
        return (step.number - before) // self.turns.every % 2 == 0

    def prepare(self, images: EveryImage) -> None:
        super().prepare(images)
        if self.turns.gates_see == "validation":
            self.held_out = [
                (self.features.compute(batch.images), batch.labels.to(batch.images.device))
                for batch in images.held_out()
            ]

    def losses(self, features: Features, step: Step) -> dict[str, Tensor]:
        self.steps = step.number + 1
        if not self.gating(step):
            return self.teach_heads(self.answers(features), step.targets)
        if self.held_out:
            features, targets = self.held_out[step.number % len(self.held_out)]
            return self.teach_gates(self.answers(features), targets, features.final)
        return self.teach_gates(self.answers(features), step.targets, features.final)

    def teach_gates(self, said: Sequence[Any], targets: Tensor, final: Tensor) -> dict[str, Tensor]:
        gates = torch.stack([outputs.gate for outputs in said], dim=1)
        paid = self.paid([*(outputs.logits for outputs in said), final], targets)
        wanted, asked = lessons(paid, gates.detach(), self.turns.targets)
        loss = gate_loss(gates, wanted, self.positive.to(gates.device), asked)
        return {"loss": loss, "gates": loss}

    def teach_heads(self, said: Sequence[Any], targets: Tensor) -> dict[str, Tensor]:
        gates = torch.stack([outputs.gate for outputs in said], dim=1)
        losses = [self.model.task.losses(outputs.logits, targets) for outputs in said]
        mass = self.turns.mass(gates.detach().float().sigmoid()).early
        loss = coupled_loss(mass, torch.stack(losses, dim=1), self.turns.coupling)
        return {"loss": loss, "heads": loss}

    @torch.no_grad()
    def paid(self, logits: Sequence[Tensor], targets: Tensor) -> Tensor:
        """v_l + λ c_l (B, L) of what every exit says, (B, C) each."""
        losses = torch.stack([self.model.task.losses(z, targets) for z in logits], dim=1)
        values = exit_values(losses, torch.stack(list(logits), 1), targets, self.turns.criterion)
        return values + self.tradeoff * self.costs.to(values.device)

    def hear(self, said: Sequence[Any], targets: Tensor) -> None:
        best = best_exit(self.paid([outputs.logits.float() for outputs in said], targets))
        self.counts += best.bincount(minlength=len(said)).to(self.counts)
        gates = torch.stack([outputs.gate for outputs in said[:-1]], dim=1).float().sigmoid()
        fires = torch.nn.functional.pad(self.turns.mass(gates).hazard >= 0.5, (0, 1), value=True)
        exits = fires.int().argmax(dim=1)  # the first that fires
        predictions = torch.stack([outputs.logits.argmax(dim=-1) for outputs in said], dim=1)
        right = predictions.gather(1, exits[:, None])[:, 0] == targets
        paid = self.costs.to(exits.device)[exits]
        self.heard.append((float(right.sum()), float(paid.sum()), len(targets)))

    def after_epoch(self, figures: Sequence[Figures]) -> dict[str, float]:
        self.positive.copy_(class_balance(self.counts, self.turns.balance))
        right, paid, count = (sum(column) for column in zip(*self.heard, strict=True))
        found = Mixture(100 * right / count, paid / count)
        self.heard.clear()
        self.counts.zero_()
        self.begun.fill_(self.steps)
        self.passed += 1
        if int(self.passed) == self.epochs:
            self.done(self.model, found)
        return {"mixture": round(found.accuracy, 3), "mixture_cost": round(found.cost, 4)}
