"""Learning rates as a pure function of the step."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from offramp.training.recipe import StageSettings


def learning_rates(optimizer: Any, settings: StageSettings, steps_per_epoch: int) -> Any:
    """timm's scheduler, stepped per update; its rate is a pure function of the step."""
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler

    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    scaled = any("lr_scale" in group for group in optimizer.param_groups)
    if settings.sched == "constant" and not warmup and not scaled:
        return None
    if settings.sched == "step":
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[round(share * total) + 1 for share in settings.milestones],  # timm counts on
            decay_rate=0.1,
            warmup_t=warmup,
            warmup_lr_init=settings.lr * 1e-2,
            t_in_epochs=False,
        )
    common: dict[str, Any] = {
        "t_initial": max(total, 1),
        "lr_min": settings.lr if settings.sched == "constant" else settings.min_lr,
        "warmup_t": warmup,
        "warmup_lr_init": settings.lr * 1e-2,
        "t_in_epochs": False,
    }
    if settings.sched == "linear":
        return PolyLRScheduler(optimizer, power=1.0, **common)
    return CosineLRScheduler(optimizer, **common)


def scale_rates(optimizer: Any, parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Give some parameters ``factor`` times the learning rate, as timm's schedulers read it."""
    chosen, groups = {id(parameter) for parameter in parameters}, []
    for group in optimizer.param_groups:
        scale = group.get("lr_scale", 1.0)
        sides: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in group["params"]:
            sides[id(parameter) in chosen].append(parameter)
        for side, times in zip(sides, (1.0, factor), strict=True):
            if side:
                groups.append({**group, "params": side, "lr_scale": scale * times})
    optimizer.param_groups[:] = groups
