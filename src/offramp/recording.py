"""offramp.collect: one pass of a model over a data set, on the engine it will run on."""

from typing import TYPE_CHECKING

from torch import Tensor

from offramp.calibration import Records, record, records_meta
from offramp.costs.macs import model_costs
from offramp.data import DataSource, batches, open_dataset
from offramp.errors import OfframpError
from offramp.runtime.engines import ENGINES, EngineOptions
from offramp.runtime.speaker import EngineSpeaker

if TYPE_CHECKING:
    from offramp.model import MultiExitModel


def collect(
    model: "MultiExitModel",
    data: str | DataSource,
    *,
    split: str = "calibration",
    engine: str = "torch",
    precision: str | None = None,
    calibration: Tensor | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    progress: bool = True,
) -> Records:
    """Run every exit of ``model`` on every image of a split, once.

    Thresholds belong to the arithmetic they were chosen on: records of an engine and precision
    are what an operating point for that engine and precision is calibrated from.

    Args:
        data: a data set's name (``"digits-grid"``) or an opened one.
        engine, precision: what computes the answers; torch at the model's own when omitted.
        calibration: images (N, 3, H, W) from which int8 ranges are read.
        limit: at most this many samples, drawn without regard to their order.

    Raises:
        OfframpError: the split is empty or of other classes, or an exit's logits not finite.
    """
    source = open_dataset(data) if isinstance(data, str) else data
    classes = model.config.num_classes
    if source.num_classes != classes:
        raise OfframpError(
            f"{source.name} has {source.num_classes} classes, but the model has {classes}"
        )
    if source.task != model.config.task:
        raise OfframpError(
            f"{source.name} is data for {source.task}, but the model is for {model.config.task}"
        )
    samples = source.split(split).limited(limit)
    build = ENGINES.get(engine)(EngineOptions(precision=precision, calibration=calibration))
    speaker = EngineSpeaker(model, build)
    meta = records_meta(
        model,
        dataset=source.name,
        split=split,
        costs=model_costs(model),
        engine=engine,
        precision=speaker.precision,
        libraries=build.libraries,
    )
    stream = batches(samples, batch_size=batch_size, preprocessing=model.preprocessing)
    return record(speaker, stream, meta=meta, count=len(samples), progress=progress)
