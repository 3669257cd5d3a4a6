"""Collect: one pass of a model over a data set, kept as records."""

import contextlib
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offramp.calibration.records import Records, RecordsMeta
from offramp.costs.evaluating import evaluating
from offramp.costs.table import CostTable
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.data import Batch, DataSource
    from offramp.model import MultiExitModel


def collect(
    model: "MultiExitModel",
    data: "str | DataSource",
    *,
    split: str = "calibration",
    batch_size: int = 64,
    limit: int | None = None,
    progress: bool = True,
) -> Records:
    """Run every exit of ``model`` on every image of a split, once.

    Args:
        data: a data set's name (``"digits-grid"``) or an opened one.
        limit: at most this many samples, drawn without regard to their order.

    Raises:
        OfframpError: the split is empty or of other classes, or an exit's logits not finite.
    """
    from offramp.costs.macs import model_costs
    from offramp.data import batches, open_dataset

    source = open_dataset(data) if isinstance(data, str) else data
    classes = model.config.num_classes
    if source.num_classes != classes:
        raise OfframpError(
            f"{source.name} has {source.num_classes} classes, but the model has {classes}"
        )
    samples = source.split(split).limited(limit)
    meta = records_meta(model, dataset=source.name, split=split, costs=model_costs(model))
    stream = batches(samples, batch_size=batch_size, preprocessing=model.preprocessing)
    return record(model, stream, meta=meta, count=len(samples), progress=progress)


def records_meta(
    model: "MultiExitModel", *, dataset: str, split: str, costs: CostTable | None = None
) -> RecordsMeta:
    """Describe where the records of ``model`` on a split come from."""
    return RecordsMeta(
        fingerprint=model.fingerprint(),
        dataset=dataset,
        split=split,
        exit_names=list(model.exit_names),
        positions=list(model.positions),
        blocks=len(model.chain.steps),
        standalone=list(model.standalone),
        precision=str(next(model.parameters()).dtype).removeprefix("torch."),
        versions=library_versions(),
        num_threads=torch.get_num_threads(),
        costs=costs,
    )


def library_versions() -> dict[str, str]:
    """Versions of what decides an exit's numbers."""
    found = {}
    for name in ("offramp", "torch", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def record(
    model: "MultiExitModel",
    batches: "Iterable[Batch]",
    *,
    meta: RecordsMeta,
    count: int,
    progress: bool = False,
) -> Records:
    """Records of the first ``count`` samples of ``batches``; the model runs in eval mode."""
    if count == 0:
        raise OfframpError(f"{meta.dataset}: split {meta.split!r} is empty, nothing to record")
    logits: Tensor | None = None
    labels, ids = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    signals: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    done = 0
    with evaluating(model), torch.no_grad(), _bar(meta, count, progress) as advance:
        for batch in batches:
            size = min(len(batch.labels), count - done)
            outputs = model(batch.images[:size].to(device))
            rows = slice(done, done + size)
            stacked = torch.stack([out.logits.float().cpu() for out in outputs], dim=1)
            if logits is None:  # the class count is the model's to say
                logits = torch.empty(count, *stacked.shape[1:])
                signals = {n: torch.empty(count, len(outputs)) for n in _signals(outputs)}
            logits[rows] = stacked
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
