"""One stage on its way: optimizer, schedule, averaged weights, checkpoints, evaluation."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from offramp.data import Augment, Batch, Split, batches, mix
from offramp.data.randomness import sample_keys, seed_globals
from offramp.errors import OfframpError, suggest
from offramp.files import write_tensors
from offramp.model import MultiExitModel
from offramp.training.checkpoint import (
    Position,
    load_checkpoint,
    save_checkpoint,
)
from offramp.training.context import Context
from offramp.training.metrics import MetricsLog
from offramp.training.recipe import Stage, StageSettings, Step
from offramp.training.validation import exit_accuracy

PLAIN = "plain-backbone.safetensors"
Sums = dict[str, tuple[float, int]]


class OutOfTimeError(Exception):
    """The run's minutes are over; its checkpoint is on disk."""


class StageRun:
    """One stage on its way: optimizer, schedule, averaged weights, checkpoints, evaluation."""

    def __init__(self, context: Context, index: int, stage: Stage, log: MetricsLog) -> None:
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        self.context, self.index, self.stage, self.log = context, index, stage, log
        self.model, self.options = context.model, context.options
        self.train_split = context.data.split("train")
        settings = stage.settings
        self.steps_per_epoch = steps_per_epoch(
            stage, self.train_split, context.accelerator.num_processes
        )
        self.total = self.steps_per_epoch * settings.epochs
        for part, module in (("backbone", self.model.backbone), ("exits", self.model.exits)):
            module.requires_grad_(part in stage.trains)
        trained = nn.ModuleDict(
            {
                part: module
                for part, module in (("backbone", self.model.backbone), ("exits", self.model.exits))
                if part in stage.trains
            }
        )
        self.optimizer = create_optimizer_v2(
            trained,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
        )
        self.schedule = _schedule(self.optimizer, settings, self.steps_per_epoch)
        self.average = (
            ModelEmaV3(self.model, decay=settings.ema_decay) if settings.ema_decay else None
        )
        self.objective = stage.objective(self.model, context.run)
        self.sums: Sums = {}

    def train(self, position: Position | None) -> None:
        """Train from ``position`` (None: from the stage's beginning) to the stage's end."""
        context = self.context
        done = 0
        if position is not None:
            fresh = position.step == 0
            load_checkpoint(
                context.run,
                self.model,
                None if fresh else self.optimizer,
                None if fresh or self.average is None else self.average.module,
            )
            if fresh and self.average is not None:
                self.average.set(self.model)
            done = position.step
            self.sums = {name: (total, count) for name, (total, count) in position.sums.items()}
        self.prepare()
        self.saved = time.monotonic()
        with self._progress() as progress:
            task = progress.add_task(self.stage.name, total=self.total, completed=done, note="")
            while done < self.total:
                epoch = done // self.steps_per_epoch
                for batch in self.batches(epoch, done % self.steps_per_epoch):
                    loss = self.step(batch, epoch, done)
                    done += 1
                    progress.update(task, completed=done, note=f"loss {loss:.3f}")
                    if done % self.steps_per_epoch:
                        self._save_if_due(done)
                self._report(epoch, done)
                self._finish_epoch(done)

    def prepare(self) -> None:
        """Hand objective and optimizer to the accelerator; once, before the first step."""
        self.wrapped, self.wrapped_optimizer = self.context.accelerator.prepare(
            self.objective, self.optimizer
        )

    def _save_if_due(self, done: int) -> None:
        """Checkpoint within an epoch; when the run's minutes are over, stop there."""
        over = self.context.out_of_time
        if over or time.monotonic() - self.saved > 60 * self.options.checkpoint_minutes:
            self._save(done)
        if over:
            raise OutOfTimeError

    def step(self, batch: Batch, epoch: int, done: int) -> float:
        """One optimizer step; returns the loss."""
        self._set_mode()
        settings, accelerator = self.stage.settings, self.context.accelerator
        place = done * accelerator.num_processes + accelerator.process_index
        seed_globals(int(sample_keys(np.array([place]), seed=self._seed, stream="dropout")[0]))
        images, targets, augment = batch.images, batch.labels, settings.augment
        if augment.mixup or augment.cutmix or augment.label_smoothing:
            images, targets = mix(
                batch,
                augment,
                num_classes=self.model.config.num_classes,
                seed=self._seed,
                epoch=epoch,
                index=place,
            )
        device = self.context.device
        step = Step(images.to(device), targets.to(device), batch.ids, done)
        if self.schedule is not None:
            self.schedule.step_update(done)
        values = self._losses(step)
        self.wrapped_optimizer.zero_grad()
        accelerator.backward(values["loss"])
        if settings.clip_grad is not None:
            accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.clip_grad)
        self.wrapped_optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step=done)
        loss = float(values["loss"].detach())
        if not math.isfinite(loss):
            raise OfframpError(
                f"stage {self.stage.name}: the loss is {loss} at step {done}; "
                f"lower lr = {settings.lr} or use precision: fp32"
            )
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value.detach()), count + 1)
        return loss

    def _losses(self, step: Step) -> dict[str, torch.Tensor]:
        try:
            return dict(self.wrapped(step))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise OfframpError(
                f"stage {self.stage.name}: batch_size = {len(step.images)}, but the model has a "
                "BatchNorm that sees one value per channel and sample (use at least 2)"
            ) from error

    def _set_mode(self) -> None:
        """Train mode for what the stage trains; the rest keeps its BatchNorm statistics too."""
        self.model.train()
        if "backbone" not in self.stage.trains:
            self.model.backbone.eval()
        if "exits" not in self.stage.trains:
            self.model.exits.eval()

    @property
    def _seed(self) -> int:
        return self.options.seed * 1000 + self.index

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Training batches of an epoch, from batch ``start`` on."""
        accelerator = self.context.accelerator
        return iter(
            batches(
                self.train_split,
                batch_size=self.stage.settings.batch_size,
                preprocessing=self.model.preprocessing,
                augment=self.stage.settings.augment,
                train=True,
                seed=self._seed,
                epoch=epoch,
                start=start,
                workers=self.options.workers,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                drop_last=True,
            )
        )

    def _report(self, epoch: int, done: int) -> None:
        """Evaluate every exit on the validation split and log the epoch."""
        if not self.context.accelerator.is_main_process:
            return
        accuracy = exit_accuracy(
            self._current(),
            self.context.data.split("validation"),
            device=self.context.device,
            precision=self.options.precision,
        )
        entry: dict[str, Any] = {
            "stage": self.stage.name,
            "stage_index": self.index,
            "epoch": epoch + 1,
            "step": done,
            "lr": self.optimizer.param_groups[0]["lr"],
            **{name: total / count for name, (total, count) in self.sums.items()},
            "validation": dict(zip(self.model.exit_names, accuracy, strict=True)),
            "validation_final": accuracy[-1],
            "seconds": round(self.context.seconds, 1),
        }
        self.log.write(entry, at=done)

    def _current(self) -> MultiExitModel:
        return self.model if self.average is None else self.average.module

    def _finish_epoch(self, done: int) -> None:
        """Checkpoint; at the stage's end the averaged weights take over and the next one begins."""
        self.sums = {}
        if done < self.total:
            self._save(done)
            if self.context.out_of_time:
                raise OutOfTimeError
            return
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if "exits" not in self.stage.trains and self.context.accelerator.is_main_process:
            write_tensors(self.context.run / PLAIN, dict(self.model.backbone.state_dict()))
        self._write(Position(self.index + 1, 0, self.context.identity, self.context.seconds), None)

    def _save(self, done: int) -> None:
        context = self.context
        position = Position(self.index, done, context.identity, context.seconds, self.sums)
        self._write(position, self.optimizer)
        self.saved = time.monotonic()

    def _write(self, position: Position, optimizer: torch.optim.Optimizer | None) -> None:
        self.context.accelerator.wait_for_everyone()
        if self.context.accelerator.is_main_process:
            average = self.average.module if self.average is not None and optimizer else None
            save_checkpoint(self.context.run, position, self.model, optimizer, average)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not (self.options.progress and self.context.accelerator.is_main_process),
        )


def steps_per_epoch(stage: Stage, split: Split, world: int) -> int:
    """Optimizer steps in one epoch; raises `OfframpError` where the stage cannot run at all."""
    from timm.optim import list_optimizers

    settings = stage.settings
    if stage.fixed_images:
        _refuse_changing_images(stage, split)
    if settings.optimizer not in list_optimizers():
        raise OfframpError(
            f"stage {stage.name}: {suggest('optimizer', settings.optimizer, list_optimizers())}"
        )
    if len(split) < settings.batch_size * world:
        raise OfframpError(
            f"stage {stage.name}: batch_size = {settings.batch_size} on {world} device(s), but "
            f"the train split has {len(split)} samples"
        )
    return len(split) // (settings.batch_size * world)


def _refuse_changing_images(stage: Stage, split: Split) -> None:
    """Raise `OfframpError` if images differ from epoch to epoch (label smoothing may stay)."""
    augment = stage.settings.augment
    if augment != Augment(label_smoothing=augment.label_smoothing):
        reason = f"recipe.{stage.name}.augment must be off"
    elif split.varies:
        reason = "this data set composes new images in every epoch"
    else:
        return
    raise OfframpError(
        f"stage {stage.name} keeps features of each image, but {reason} (or set cache_gb: null)"
    )


def _schedule(optimizer: Any, settings: StageSettings, steps_per_epoch: int) -> Any:
    """timm's scheduler, stepped per update; its rate is a pure function of the step."""
    from timm.scheduler import CosineLRScheduler, PolyLRScheduler

    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if settings.sched == "constant" and not warmup:
        return None
    common: dict[str, Any] = {
        "t_initial": max(total, 1),
        "lr_min": settings.lr if settings.sched == "constant" else 0.0,
        "warmup_t": warmup,
        "warmup_lr_init": settings.lr * 1e-2,
        "t_in_epochs": False,
    }
    if settings.sched == "linear":
        return PolyLRScheduler(optimizer, power=1.0, **common)
    return CosineLRScheduler(optimizer, **common)
