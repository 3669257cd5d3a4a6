"""Time candidates in turns on one or several engines."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from offramp.calibration import evaluate
from offramp.costs import count_macs, describe_environment
from offramp.errors import OfframpError
from offramp.frontier.candidates import Candidate, of_run, static_candidates, task_of
from offramp.frontier.result import Entry, Frontier
from offramp.reduced_run import point_records, reduced_run
from offramp.runs import RunFolder
from offramp.runtime import ENGINES, compile_runner
from offramp.runtime.contest import Contender, contest
from offramp.runtime.engines import EngineOptions
from offramp.runtime.static import in_channels, static_program

if TYPE_CHECKING:
    from offramp.data import DataSource

WARMUP = 1  # rounds


class Setting(NamedTuple):
    """How everybody runs; ``label`` is the engine as it was asked for."""

    label: str
    engine: str
    precision: str | None
    batch_size: int
    images: int


class Participant(NamedTuple):
    """What is known of a contender before it is timed, by the names of an `Entry`'s fields."""

    facts: dict[str, Any]
    contender: Contender


def measure_frontier(
    models: Sequence[str],
    *,
    run: RunFolder | None = None,
    point: str | None = None,
    data: "DataSource | None" = None,
    split: str = "test",
    engines: Sequence[str] | None = None,
    batch_size: int = 1,
    images: int = 64,
    rounds: int = 7,
    threads: int | None = None,
    progress: bool = False,
    starting: Callable[[int], Callable[[], None]] | None = None,
) -> Frontier:
    """Time models on this machine, each at its own input size, all in one run and in turns.

    Static models answer noise, for they do the same on every image; a dynamic one answers real
    images of its split. Weights are random where only a published accuracy is used.

    Args:
        models: timm names, patterns of them, and run folders, whose backbones are taken.
        run: whose dynamic model takes part, and its own backbone beside it.
        point: its operating point; the newest when omitted.
        data: evaluate the named models on it instead of looking accuracies up.
        engines: names in the engine registry, with a precision after a colon where it is not the
            engine's default (``"openvino:bf16"``); the point's own, or torch, when omitted.
        images: per model and round.
        threads: CPU threads; torch's number when omitted.
        progress: show bars while records are collected.
        starting: told how many turns will come, returns what to call after each.

    Raises:
        OfframpError: for unknown names, missing weights, a point of another engine, or fewer
            images than a batch holds.
    """
    if not 1 <= batch_size <= images:
        raise OfframpError(f"batch size {batch_size}, but {images} images per round (use 1…N)")
    settings = [
        Setting(label, *_engine(label), batch_size, images)
        for label in dict.fromkeys(engines or [_own_engine(run, point)])
    ]
    static = static_candidates(models, data, split, progress=progress)
    if run is not None and run.path.resolve() not in [Path(name).resolve() for name in models]:
        static.append(of_run(run, split, progress=progress))
    with using_threads(threads):
        found: list[Participant] = []
        for setting in settings:
            found += [_static(candidate, setting) for candidate in static]
            if run is not None:
                found.append(_dynamic(run, point, split, setting, progress=progress))
        contenders = {str(i): participant.contender for i, participant in enumerate(found)}
        advance = starting(len(contenders) * (WARMUP + rounds)) if starting else lambda: None
        times = contest(contenders, rounds=rounds, warmup=WARMUP, advance=advance)
        environment = describe_environment()
    return Frontier(
        batch_size=batch_size,
        images=images,
        rounds=rounds,
        fingerprint=run.model.fingerprint() if run else None,
        environment=environment,
        entries=[
            Entry(**participant.facts, rounds_ms=rounds_ms)
            for participant, rounds_ms in zip(found, times.values(), strict=True)
        ],
    )


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Give torch, and engines that follow it, so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _engine(label: str) -> tuple[str, str | None]:
    """An engine and its precision, checked, of ``engine`` or ``engine:precision``."""
    name, _, precision = label.partition(":")
    ENGINES.get(name)(EngineOptions(precision=precision or None))
    return name, precision or None


def _own_engine(run: RunFolder | None, point: str | None) -> str:
    """What a run's point was calibrated on, as ``engine:precision``."""
    if run is None:
        return "torch"
    chosen = run.point(point)[1]
    default = ENGINES.get(chosen.engine)().precision
    if default == "model":
        default = str(next(run.model.parameters()).dtype).removeprefix("torch.")
    return chosen.engine + ("" if chosen.precision == default else f":{chosen.precision}")


def _static(candidate: Candidate, setting: Setting) -> Participant:
    model, size, batch = candidate.model.eval(), candidate.image_size, setting.batch_size
    noise = torch.randn(
        batch, in_channels(model), *size, generator=torch.Generator().manual_seed(0)
    )
    options = EngineOptions(precision=setting.precision, batch_size=batch, calibration=noise)
    try:
        program = static_program(model, size, setting.engine, options=options)
    except OfframpError as error:
        raise OfframpError(f"{candidate.name} on {setting.engine}: {error}") from error
    precision = ENGINES.get(setting.engine)(options).precision
    if precision == "model":
        precision = str(noise.dtype).removeprefix("torch.")
    known = precision != "int8"  # accuracies are of the weights as they are
    facts = {
        "name": candidate.name,
        "kind": "static",
        "engine": setting.label,
        "precision": precision,
        "image_size": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": count_macs(model, noise[:1]),
        "accuracy": candidate.accuracy if known else None,
        "task": candidate.task if known else None,
        "source": candidate.source if known else None,
        "weights": candidate.weights if known else None,
    }
    return Participant(facts, Contender(program, [noise] * (setting.images // batch)))


def _dynamic(
    run: RunFolder, point: str | None, split: str, setting: Setting, *, progress: bool
) -> Participant:
    name, chosen = run.point(point, engine=setting.engine, precision=setting.precision)
    said = evaluate(chosen, point_records(run, chosen, split, progress=progress))
    called, run = run.path.resolve().name, reduced_run(run, chosen.reducer)
    size = 1 if setting.batch_size == 1 else None  # larger batches shrink on the way
    options = run.engine_options(setting.engine, setting.precision, batch_size=size)
    runner = compile_runner(
        run.model, chosen, engine=setting.engine, options=options, costs=run.costs
    )
    images = run.images(split, setting.images)
    if len(images) < setting.batch_size:
        raise OfframpError(
            f"batch size {setting.batch_size}, but the {split} split has {len(images)} images"
        )
    groups = [g for g in images.split(setting.batch_size) if len(g) == setting.batch_size]
    facts = {
        "name": f"{called} at {name}",
        "kind": "dynamic",
        "engine": setting.label,
        "precision": runner.precision,
        "image_size": run.model.chain.image_size,
        "parameters": sum(run.model.parameter_counts().values()),
        "macs": run.costs.mean_cost(said.exit_share, chosen.active),
        "accuracy": said.accuracy,
        "task": task_of(run, split),
        "source": f"records, {said.n} samples",
    }
    return Participant(facts, Contender(runner, groups))
