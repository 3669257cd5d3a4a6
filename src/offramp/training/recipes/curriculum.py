"""``curriculum``: exits that see easy samples first.

Bakhtiarnia, Zhang and Iosifidis, "Improving the Accuracy of Early Exits in Multi-Exit Architectures
via Curriculum Learning", IJCNN 2021, arXiv 2104.10461, with the scores and the pace of Hacohen and
Weinshall, ICML 2019.
"""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.training.difficulty import Ranking, difficulty, paced_order, ranked
from offramp.training.recipe import Course, Order, Stage, register_recipe
from offramp.training.recipes.classifier_wise import ClassifierWise


@register_recipe("curriculum")
class Curriculum(ClassifierWise):
    """Heads alone; at step t samples come from the first g(t) = min(1, g₀·a^⌊t/T⌋) by difficulty.

    Difficulty is the loss of the trained backbone's final exit (``transfer``), or the mean loss of
    the early exits of an earlier run (``bootstrap``).
    """

    tasks = ("classification",)

    score: Literal["transfer", "bootstrap"] = Field(
        default="transfer", description="whose loss says how hard a sample is"
    )
    previous: str | None = Field(
        default=None, description="bootstrap: folder of an earlier run with the same data"
    )
    ranking: Ranking = Field(
        default="easy", description="easy first; hard (reversed) and random are the controls"
    )
    balanced: bool = Field(default=False, description="every share holds the classes in proportion")
    start: float = Field(default=0.1, gt=0, le=1, description="g₀, the share met at first")
    growth: float = Field(default=1.7, gt=1, description="a, its growth at a time")
    every: int = Field(default=100, gt=0, description="T, steps from one growth to the next")

    @model_validator(mode="after")
    def _with_a_run(self) -> Self:
        if (self.score == "bootstrap") != (self.previous is not None):
            raise ValueError("score: bootstrap goes with previous: RUN, and only with that")
        return self

    def order(self, course: Course) -> Order:
        """The order in which the heads meet samples."""
        model = course.context.model
        teacher, exits = model, [model.num_exits - 1]
        if self.previous is not None:
            teacher = MultiExitModel.from_pretrained(self.previous)
            exits = list(range(len(teacher.exits)))
            if teacher.config.num_classes != model.config.num_classes:
                raise OfframpError(
                    f"recipe.previous: {self.previous} knows {teacher.config.num_classes} classes, "
                    f"but this run has {model.config.num_classes}"
                )
        scores = difficulty(course, teacher, exits)
        ranks = ranked(scores, course.split.labels, self.ranking, balanced=self.balanced)
        return paced_order(course, ranks, start=self.start, growth=self.growth, every=self.every)

    def heads_stage(self) -> Stage:
        return replace(super().heads_stage(), order=self.order)
