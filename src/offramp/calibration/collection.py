"""One pass of a model over data, kept as records."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from offramp.calibration.records import Records
from offramp.calibration.records_meta import RecordsMeta
from offramp.costs.evaluating import evaluating
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.tasks import task_named

if TYPE_CHECKING:
    from offramp.data import Batch
    from offramp.model import MultiExitModel

Speaker = Callable[[Tensor], list[Any]]
"""Images (B, 3, H, W) → what every exit says, shallow to deep."""


def records_meta(
    model: "MultiExitModel",
    *,
    dataset: str,
    split: str,
    costs: CostTable | None = None,
    engine: str = "torch",
    precision: str | None = None,
    libraries: tuple[str, ...] = (),
) -> RecordsMeta:
    """Describe where the records of ``model`` on a split come from.

    Args:
        engine, precision: what computed them; ``precision`` is the model's own when omitted.
        libraries: what else decides the numbers, the engine's packages.
    """
    return RecordsMeta(
        fingerprint=model.fingerprint(),
        dataset=dataset,
        split=split,
        exit_names=list(model.exit_names),
        positions=list(model.positions),
        blocks=len(model.chain.steps),
        full_blocks=model.chain.full_blocks,
        standalone=list(model.standalone),
        task=model.config.task,
        engine=engine,
        precision=precision or str(next(model.parameters()).dtype).removeprefix("torch."),
        versions=library_versions(*libraries),
        num_threads=torch.get_num_threads(),
        costs=costs,
    )


def library_versions(*more: str) -> dict[str, str]:
    """Versions of what decides an exit's numbers."""
    found = {}
    for name in ("offramp", "torch", "timm", *more):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def record(
    speaker: Speaker,
    batches: "Iterable[Batch]",
    *,
    meta: RecordsMeta,
    count: int,
    progress: bool = False,
) -> Records:
    """Records of the first ``count`` samples of ``batches``.

    Args:
        speaker: images → what every exit says; a model, which then runs in eval mode and whose
            numbers are put into the unit of their targets, or its exits on an engine.
    """
    if count == 0:
        raise OfframpError(f"{meta.dataset}: split {meta.split!r} is empty, nothing to record")
    logits: Tensor | None = None
    labels = torch.zeros(count, dtype=task_named(meta.task).targets)
    ids = torch.zeros(count, dtype=torch.int64)
    signals: dict[str, Tensor] = {}
    module = speaker if isinstance(speaker, nn.Module) else nn.Module()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    target = getattr(getattr(speaker, "config", None), "target", None)
    done = 0
    with evaluating(module), torch.no_grad(), _bar(meta, count, progress) as advance:
        for batch in batches:
            size = min(len(batch.labels), count - done)
            outputs = speaker(batch.images[:size].to(device))
            rows = slice(done, done + size)
            stacked = torch.stack([out.logits.float().cpu() for out in outputs], dim=1)
            if logits is None:  # the class count is the model's to say
                logits = torch.empty(count, *stacked.shape[1:])
                signals = {n: torch.empty(count, len(outputs)) for n in _signals(outputs)}
            logits[rows] = stacked if target is None else target.restore(stacked)
            for name, column in signals.items():
                column[rows] = _signal(outputs, name).float().cpu()
            labels[rows], ids[rows] = batch.labels[:size], batch.ids[:size]
            done += size
            advance(size)
            if done == count:
                break
    if logits is None or done < count:
        raise OfframpError(f"{meta.dataset}: split {meta.split!r} gave {done} of {count} samples")
    return Records.from_logits(logits, labels, ids=ids, signals=signals, meta=meta)


def _signals(outputs: list[Any]) -> list[str]:
    """Scalar signals that at least one exit gives besides its logits."""
    found = (name for out in outputs for name in out._fields if name != "logits")
    return list(dict.fromkeys(found))


def _signal(outputs: list[Any], name: str) -> Tensor:
    """(B, K); an exit that does not give the signal reads as NaN."""
    batch = len(outputs[0].logits)
    columns = [
        getattr(out, name, torch.full((batch,), torch.nan)).reshape(batch) for out in outputs
    ]
    return torch.stack(columns, dim=1)


@contextlib.contextmanager
def _bar(meta: RecordsMeta, count: int, progress: bool) -> Iterator[Any]:
    if not progress:
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"recording {meta.dataset} · {meta.split}", total=count)
        yield lambda size: bar.advance(task, size)
