"""One stage on its way: optimizer, schedule, averaged weights, checkpoints, evaluation."""

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch import distributed as dist

from offramp.data import Batch, Split, batches, mix
from offramp.data.randomness import sample_keys, seed_globals
from offramp.errors import OfframpError
from offramp.files import write_tensors
from offramp.model import MultiExitModel
from offramp.training.checkpoint import (
    Position,
    load_checkpoint,
    save_checkpoint,
)
from offramp.training.context import Context
from offramp.training.every_image import EveryImage
from offramp.training.metrics import MetricsLog
from offramp.training.recipe import Course, Order, Stage, Step
from offramp.training.requirements import steps_per_epoch
from offramp.training.schedule import learning_rates, scale_rates
from offramp.training.trained import modes
from offramp.training.validation import exit_figures, validation_entry

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
        trained = [p for p in stage.trains(self.model) if id(p) not in context.fixed]
        self.model.requires_grad_(False)
        self.model.zero_grad()  # what an earlier stage left would count in the norm that is clipped
        for parameter in trained:
            parameter.requires_grad_(True)
        self.modes = modes(self.model, trained)
        self.optimizer = create_optimizer_v2(
            _parts(self.model),
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
        )
        for parameters, factor in stage.rates(self.model):
            scale_rates(self.optimizer, parameters, factor)
        self.schedule = learning_rates(self.optimizer, settings, self.steps_per_epoch)
        self.average = (
            ModelEmaV3(self.model, decay=settings.ema_decay) if settings.ema_decay else None
        )
        self.objective = stage.objective(self.model, context.run)
        self.order: Order | None = None
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
                {} if fresh else self._memory,
            )
            if fresh and self.average is not None:
                self.average.set(self.model)
            done = position.step
            self.sums = {name: (total, count) for name, (total, count) in position.sums.items()}
        self.prepare(first=done == 0)
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
                self._share()
                if self.objective.finished:
                    self.total = done
                self._finish_epoch(done)

    def prepare(self, *, first: bool = True) -> None:
        """Hand objective and optimizer to the accelerator; once, before the first step.

        Args:
            first: the stage begins, rather than being resumed.
        """
        accelerator, stage = self.context.accelerator, self.stage
        self.wrapped, self.wrapped_optimizer = accelerator.prepare(self.objective, self.optimizer)
        self.model.eval()
        with torch.no_grad(), accelerator.autocast():
            held_out = self.context.data.split("validation")
            ids = torch.cat([self.train_split.ids, held_out.ids])
            every = partial(self._images_of, self.train_split, held_out)
            self.objective.prepare(EveryImage(ids, every, partial(self._images_of, held_out)))
        if stage.order is not None:
            self.order = stage.order(
                Course(
                    context=self.context,
                    stage=stage.name,
                    split=self.train_split,
                    seed=self._seed,
                    steps=self.steps_per_epoch,
                    batch=stage.settings.batch_size * accelerator.num_processes,
                    first=first,
                )
            )

    def _images_of(self, *splits: Split) -> Iterator[Batch]:
        """Splits in order, unaugmented, on the device; read only if asked for."""
        for split in splits:
            for batch in batches(
                split,
                batch_size=self.stage.settings.batch_size,
                preprocessing=self.model.preprocessing,
                workers=self.options.workers,
            ):
                yield batch._replace(images=batch.images.to(self.context.device))

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
        step = Step(images.to(device), targets.to(device), batch.ids, done, epoch)
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
        for module, training in self.modes:
            module.training = training

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
                order=self._order(epoch),
                with_images=self.objective.needs_images,
            )
        )

    def _order(self, epoch: int) -> NDArray[np.int64] | None:
        """Positions of an epoch's samples, where the stage has an order of its own."""
        return None if self.order is None else self.order(epoch)

    def _report(self, epoch: int, done: int) -> None:
        """Evaluate every exit on the validation split and log the epoch."""
        if not self.context.accelerator.is_main_process:
            return
        look = self.objective.needs_images or self.average is not None
        figures = exit_figures(
            self._current(),
            self.context.data.split("validation"),
            device=self.context.device,
            precision=self.options.precision,
            listener=self.objective.hear,
            answers=None if look else self.objective.answers_to,
        )
        more = self.objective.after_epoch(figures)
        entry: dict[str, Any] = {
            "stage": self.stage.name,
            "stage_index": self.index,
            "epoch": epoch + 1,
            "step": done,
            "lr": self.optimizer.param_groups[0]["lr"],
            **{name: total / count for name, (total, count) in self.sums.items()},
            **validation_entry(self.model, figures),
            **more,
            "seconds": round(self.context.seconds, 1),
        }
        self.log.write(entry, at=done)

    @property
    def _memory(self) -> dict[str, Tensor]:
        """What the objective remembers besides the model."""
        return dict(self.objective.named_buffers(recurse=False))

    def _share(self) -> None:
        """Give every process what the objective changed in the main one."""
        if self.context.accelerator.num_processes > 1:
            for tensor in (*self._memory.values(), *self.model.exits.state_dict().values()):
                dist.broadcast(tensor, src=0)

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
        plain = not any(p.requires_grad for p in self.model.exits.parameters())
        if plain and self.context.accelerator.is_main_process:
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
            memory = self._memory if optimizer else {}
            save_checkpoint(self.context.run, position, self.model, optimizer, average, memory)

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


def _parts(model: MultiExitModel) -> nn.ModuleDict:
    """Backbone and exits, as far as they are trained."""
    parts = {"backbone": model.chain, "exits": model.exits}
    return nn.ModuleDict(
        {
            name: part
            for name, part in parts.items()
            if any(parameter.requires_grad for parameter in part.parameters())
        }
    )
