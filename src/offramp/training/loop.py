"""The one training loop: stages of a recipe, on one device or many, resumable at any moment."""

from contextlib import closing
from pathlib import Path

from offramp import vision_cure
from offramp.data import DataSource
from offramp.errors import OfframpError
from offramp.model import MultiExitModel
from offramp.training.checkpoint import (
    CHECKPOINT,
    Position,
    read_position,
)
from offramp.training.context import Context, LoopOptions
from offramp.training.metrics import MetricsLog
from offramp.training.plain_attention import plain_attention
from offramp.training.recipe import RECIPES, Recipe
from offramp.training.requirements import steps_per_epoch
from offramp.training.stage_run import StageRun

PLAIN = "plain-backbone.safetensors"
Sums = dict[str, tuple[float, int]]


class Trainer:
    """Trains a model by a recipe in a run folder.

    The order of samples, their augmentation and all dropout are pure functions of
    (seed, stage, step), so a resumed run repeats an uninterrupted one without any generator state.
    """

    def __init__(
        self,
        model: MultiExitModel,
        recipe: Recipe,
        data: DataSource,
        run: Path,
        options: LoopOptions,
    ) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        vision_cure.ensure()
        _check_task(model, recipe, data)
        self.stages = recipe.stages(model)
        # one process may train twice with different precision; the process group stays
        AcceleratorState._reset_state()
        accelerator = Accelerator(
            mixed_precision="bf16" if options.precision == "bf16" else "no",
            cpu=options.device == "cpu",
            # a step of an alternating recipe may leave whole heads without gradient
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.context = Context(
            model=model,
            data=data,
            run=run,
            options=options,
            accelerator=accelerator,
            identity=recipe.model_dump_json(),
        )

    def check(self, *, resume: bool = False) -> Position | None:
        """Where to go on; raises `OfframpError`, before anything is written, if it cannot run."""
        position = read_position(self.context.run)
        if position is not None and not resume:
            raise OfframpError(
                f"{self.context.run} holds an unfinished run: go on with --resume, "
                "or delete the folder"
            )
        if position is not None and position.recipe != self.context.identity:
            raise OfframpError(f"{self.context.run / CHECKPOINT} was written by another recipe")
        for stage in self.stages:
            if stage.settings.epochs:
                split = self.context.data.split("train")
                steps_per_epoch(stage, split, self.context.accelerator.num_processes)
        return position

    def train(self, *, resume: bool = False) -> MultiExitModel:
        """Run every stage; with ``resume`` go on from the folder's checkpoint if there is one.

        Raises:
            OfframpError: when the checkpoint belongs to another recipe, or there is an unfinished
                run in the folder and ``resume`` is off.
        """
        position = self.check(resume=resume)
        context = self.context
        context.run.mkdir(parents=True, exist_ok=True)
        context.before = position.seconds if position else 0.0
        log = MetricsLog(context.run, (position.stage, position.step) if position else None)
        context.model.to(context.device)
        try:
            for index, stage in enumerate(self.stages):
                if stage.settings.epochs == 0 or (position and index < position.stage):
                    continue
                here = position if position and index == position.stage else None
                part = StageRun(context, index, stage, log)
                attention = plain_attention(
                    context.model, context.device, context.options.precision
                )
                with closing(part.objective), attention:
                    part.train(here)
        finally:
            log.close()
            for parameter in context.model.parameters():
                parameter.requires_grad_(id(parameter) not in context.fixed)
        return context.model.eval()


def _check_task(model: MultiExitModel, recipe: Recipe, data: DataSource) -> None:
    """Raise `OfframpError` unless model, data and recipe are for the same kind of answer."""
    task = model.config.task
    if data.task != task:
        raise OfframpError(f"{data.name} is data for {data.task}, but the model is for {task}")
    if task not in recipe.tasks:
        name = next((n for n in RECIPES.names() if RECIPES.get(n) is type(recipe)), "")
        raise OfframpError(
            f"recipe {name!r} teaches {' and '.join(recipe.tasks)}, but the model is for {task} "
            "(use joint, frozen or finetune)"
        )
