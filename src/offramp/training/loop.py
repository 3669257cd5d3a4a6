"""The one training loop: stages of a recipe, on one device or many, resumable at any moment."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from offramp import vision_cure
from offramp.data import DataSource, Split, batches, mix
from offramp.data.randomness import sample_keys, seed_globals
from offramp.errors import OfframpError
from offramp.files import write_tensors
from offramp.model import MultiExitModel
from offramp.training.checkpoint import (
    CHECKPOINT,
    Position,
    load_checkpoint,
    read_position,
    save_checkpoint,
)
from offramp.training.metrics import MetricsLog
from offramp.training.recipe import Recipe, Stage, StageSettings, Step

PLAIN = "plain-backbone.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop runs, apart from what the recipe trains."""

    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    workers: int = 0
    checkpoint_minutes: float = 5.0
    progress: bool = True
    minutes: float | None = None
    """Stop after so many minutes with a checkpoint, to be resumed."""


class OutOfTimeError(Exception):
    """The run's minutes are over; its checkpoint is on disk."""


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
        from accelerate import Accelerator

        vision_cure.ensure()
        self.model, self.data, self.run, self.options = model, data, run, options
        self.stages = recipe.stages()
        self.identity = recipe.model_dump_json()
        self.accelerator = Accelerator(
            mixed_precision="bf16" if options.precision == "bf16" else "no",
            cpu=options.device == "cpu",
        )
        self.device = self.accelerator.device
        self.started = time.monotonic()
        self.before = 0.0

    def train(self, *, resume: bool = False) -> MultiExitModel:
        """Run every stage; with ``resume`` go on from the folder's checkpoint if there is one.

        Raises:
            OfframpError: when the checkpoint belongs to another recipe, or there is an unfinished
                run in the folder and ``resume`` is off.
        """
        position = read_position(self.run)
        if position is not None and not resume:
            raise OfframpError(
                f"{self.run} holds an unfinished run: go on with --resume, or delete the folder"
            )
        if position is not None and position.recipe != self.identity:
            raise OfframpError(f"{self.run / CHECKPOINT} was written by another recipe")
        self.run.mkdir(parents=True, exist_ok=True)
        self.before = position.seconds if position else 0.0
        log = MetricsLog(self.run, (position.stage, position.step) if position else None)
        self.model.to(self.device)
        try:
            for index, stage in enumerate(self.stages):
                if stage.settings.epochs == 0 or (position and index < position.stage):
                    continue
                here = position if position and index == position.stage else None
                _StageRun(self, index, stage, log).train(here)
        finally:
            log.close()
            self.model.requires_grad_(True)
        return self.model.eval()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, over all resumptions."""
        return self.before + time.monotonic() - self.started


class _StageRun:
    """One stage on its way: optimizer, schedule, averaged weights, checkpoints, evaluation."""

    def __init__(self, trainer: Trainer, index: int, stage: Stage, log: MetricsLog) -> None:
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        self.trainer, self.index, self.stage, self.log = trainer, index, stage, log
        self.model, self.options = trainer.model, trainer.options
        self.train_split = trainer.data.split("train")
        settings = stage.settings
        world = trainer.accelerator.num_processes
        self.steps_per_epoch = len(self.train_split) // (settings.batch_size * world)
        if self.steps_per_epoch == 0:
            raise OfframpError(
                f"stage {stage.name}: batch_size = {settings.batch_size} on {world} device(s), but "
                f"the train split has {len(self.train_split)} samples"
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
        self.objective = stage.objective(self.model, trainer.run)

    def train(self, position: Position | None) -> None:
        """Train from ``position`` (None: from the stage's beginning) to the stage's end."""
        trainer = self.trainer
        done = 0
        if position is not None:
            fresh = position.step == 0
            load_checkpoint(
                trainer.run,
                self.model,
                None if fresh else self.optimizer,
                None if fresh or self.average is None else self.average.module,
            )
            if fresh and self.average is not None:
                self.average.set(self.model)
            done = position.step
        objective, optimizer = trainer.accelerator.prepare(self.objective, self.optimizer)
        last_save = time.monotonic()
        with self._progress() as progress:
            task = progress.add_task(self.stage.name, total=self.total, completed=done, note="")
            while done < self.total:
                epoch = done // self.steps_per_epoch
                sums: dict[str, list[float]] = {}
                for batch in self._batches(epoch, done % self.steps_per_epoch):
                    self._set_mode()
                    values = self._step(objective, optimizer, batch, epoch, done)
                    done += 1
                    for name, value in values.items():
                        sums.setdefault(name, []).append(value)
                    progress.update(task, completed=done, note=f"loss {values['loss']:.3f}")
                    over = self._minutes_over()
                    due = time.monotonic() - last_save > 60 * self.options.checkpoint_minutes
                    if (over or due) and done % self.steps_per_epoch:
                        self._save(done)
                        last_save = time.monotonic()
                    if over and done % self.steps_per_epoch:
                        raise OutOfTimeError
                self._report(epoch, done, sums)
                self._finish_epoch(done)
                last_save = time.monotonic()
                if self._minutes_over() and done < self.total:
                    raise OutOfTimeError

    def _step(
        self, objective: nn.Module, optimizer: Any, batch: Any, epoch: int, done: int
    ) -> dict[str, float]:
        settings, accelerator = self.stage.settings, self.trainer.accelerator
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
        device = self.trainer.device
        step = Step(images.to(device), targets.to(device), batch.ids, done)
        if self.schedule is not None:
            self.schedule.step_update(done)
        values = objective(step)
        optimizer.zero_grad()
        accelerator.backward(values["loss"])
        if settings.clip_grad is not None:
            accelerator.clip_grad_norm_(objective.parameters(), settings.clip_grad)
        optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step=done)
        numbers = {name: float(value.detach()) for name, value in values.items()}
        if not torch.isfinite(torch.tensor(numbers["loss"])):
            raise OfframpError(
                f"stage {self.stage.name}: the loss is {numbers['loss']} at step {done}; "
                f"lower lr = {settings.lr} or use precision: fp32"
            )
        return numbers

    def _set_mode(self) -> None:
        self.model.train()
        if "backbone" not in self.stage.trains:
            self.model.backbone.eval()
        if "exits" not in self.stage.trains:
            self.model.exits.eval()

    @property
    def _seed(self) -> int:
        return self.options.seed * 1000 + self.index

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        accelerator = self.trainer.accelerator
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

    def _report(self, epoch: int, done: int, sums: dict[str, list[float]]) -> None:
        """Evaluate every exit on the validation split and log the epoch."""
        if not self.trainer.accelerator.is_main_process:
            return
        accuracy = exit_accuracy(
            self._current(),
            self.trainer.data.split("validation"),
            device=self.trainer.device,
            precision=self.options.precision,
        )
        entry: dict[str, Any] = {
            "stage": self.stage.name,
            "stage_index": self.index,
            "epoch": epoch + 1,
            "step": done,
            "lr": self.optimizer.param_groups[0]["lr"],
            **{name: float(np.mean(values)) for name, values in sums.items()},
            "validation": dict(zip(self.model.exit_names, accuracy, strict=True)),
            "validation_final": accuracy[-1],
            "seconds": round(self.trainer.seconds, 1),
        }
        self.log.write(entry, at=done)

    def _current(self) -> MultiExitModel:
        return self.model if self.average is None else self.average.module

    def _finish_epoch(self, done: int) -> None:
        """Checkpoint; at the stage's end the averaged weights take over and the next one begins."""
        if done < self.total:
            self._save(done)
            return
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if self.stage.name == "finetune" and self.trainer.accelerator.is_main_process:
            write_tensors(self.trainer.run / PLAIN, dict(self.model.backbone.state_dict()))
        self._write(Position(self.index + 1, 0, self.trainer.identity, self.trainer.seconds), None)

    def _save(self, done: int) -> None:
        position = Position(self.index, done, self.trainer.identity, self.trainer.seconds)
        self._write(position, self.optimizer)

    def _write(self, position: Position, optimizer: torch.optim.Optimizer | None) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.is_main_process:
            average = self.average.module if self.average is not None and optimizer else None
            save_checkpoint(self.trainer.run, position, self.model, optimizer, average)

    def _minutes_over(self) -> bool:
        limit = self.options.minutes
        return limit is not None and time.monotonic() - self.trainer.started > 60 * limit

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            disable=not (self.options.progress and self.trainer.accelerator.is_main_process),
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


@torch.no_grad()
def exit_accuracy(
    model: MultiExitModel,
    split: Split,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 256,
) -> list[float]:
    """Accuracy of every exit over a split, in percent."""
    model.eval()
    hits = torch.zeros(model.num_exits)
    for batch in batches(split, batch_size=batch_size, preprocessing=model.preprocessing):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(batch.images.to(device))
        labels = batch.labels.to(device)
        hits += torch.stack([(said[0].argmax(-1) == labels).sum() for said in outputs]).cpu()
    return [round(100 * hit.item() / len(split), 3) for hit in hits]
