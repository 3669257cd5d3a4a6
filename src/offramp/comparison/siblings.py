"""Models that share a frozen backbone are recorded together: one pass through it for all."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from offramp.calibration import Records, record, records_meta
from offramp.costs.evaluating import evaluating
from offramp.costs.macs import model_costs
from offramp.data import DataSource, batches
from offramp.exits import Outputs
from offramp.files import tensor_digest
from offramp.model import MultiExitModel
from offramp.runs import RunFolder
from offramp.training.features import FrozenFeatures, early_answers

BATCH = 64


def trunk(model: MultiExitModel) -> str | None:
    """What decides the features that a model's heads read; None for those that cannot be kept.

    Features of a split are held in memory, so the heads must read pooled vectors (`Exit.summary`).
    """
    if model.config.task != "classification" or not all(head.summary for head in model.heads):
        return None
    read = [(spec.after, spec.tap) for spec in model.config.exits]
    said = f"{model.config.backbone} {read} {model.preprocessing}"
    return tensor_digest(dict(model.backbone.state_dict()), extra=said)


def record_siblings(
    models: Sequence[MultiExitModel], data: DataSource, split: str
) -> Iterator[Records]:
    """Records of models with the same `trunk`, in their order; the backbone runs once."""
    first, samples = models[0], data.split(split)
    features, kept = FrozenFeatures(first, None), []
    with evaluating(first):
        for batch in batches(samples, batch_size=BATCH, preprocessing=first.preprocessing):
            kept.append((features.compute(batch.images), batch._replace(images=batch.images[:0])))
    for model in models:
        meta = records_meta(model, dataset=data.name, split=split, costs=model_costs(model))
        left = iter(kept)

        def speak(
            images: Tensor, model: MultiExitModel = model, left: Iterator[Any] = left
        ) -> list[Any]:
            found = next(left)[0]
            return [*early_answers(model, found), Outputs(found.final)]

        with evaluating(model):
            yield record(speak, (batch for _, batch in kept), meta=meta, count=len(samples))


def record_runs(runs: Sequence[RunFolder], split: str) -> None:
    """Make the records that runs lack, where several share their backbone: each in its folder."""
    families: dict[str, list[RunFolder]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        name = trunk(run.model)
        if name is not None and run.known_records(split) is None:
            families.setdefault(f"{name} {run.config.data}", []).append(run)
    for family in families.values():
        if len(family) > 1:
            found = record_siblings([run.model for run in family], family[0].data, split)
            for run, records in zip(family, found, strict=True):
                records.save(run.records_file(split))
