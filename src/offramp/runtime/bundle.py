"""Bundles: an operating point as files that an inference engine runs without torch or Offramp."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from offramp.costs.environment import describe_versions
from offramp.errors import OfframpError
from offramp.files import write_json
from offramp.policies import policy_from_config
from offramp.runtime.engines import ENGINES, EngineOptions, FileEngine
from offramp.runtime.inputs import InputCheck
from offramp.runtime.manifest import MANIFEST, Manifest, SegmentFile, digest
from offramp.runtime.parts import build_parts
from offramp.runtime.prediction import ExitTables, temperatures_of
from offramp.runtime.runner import Runner
from offramp.runtime.single_onnx import write_single
from offramp.runtime.verification import verify
from offramp.version import __version__

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.model import MultiExitModel

POINT = "point.json"
SINGLE = "single.onnx"


def export_bundle(
    model: "MultiExitModel",
    point: "OperatingPoint",
    folder: str | Path,
    *,
    images: Tensor,
    calibration: Tensor | None = None,
    measured: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write an operating point as a folder that any runtime of the point's engine can use.

    One file per segment between active exits, ``manifest.json``, the point itself, and for ONNX
    ``single.onnx``: the whole model for batch 1, with genuinely nested ``If``. Every segment is
    compared with torch before the folder gets its name.

    Args:
        point: calibrated on a file engine (``onnxruntime``, ``openvino``): that is the format.
        images: at least 7 real, preprocessed images (N, 3, H, W) to verify with.
        calibration: images from which int8 ranges are read.
        measured: times to keep in the manifest.
        overwrite: replace an older bundle of that name.

    Raises:
        OfframpError: for a point of another model or of an engine without files, a folder that
            holds something, or an export that differs from torch.
    """
    build = ENGINES.get(point.engine)(
        EngineOptions(precision=point.precision, calibration=calibration)
    )
    if not isinstance(build, FileEngine):
        having = [name for name in ENGINES.names() if issubclass(ENGINES.get(name), FileEngine)]
        raise OfframpError(
            f"this operating point was calibrated on engine {point.engine!r}, which has no files; "
            f"calibrate on one that has ({', '.join(having)})"
        )
    for change in point.check(
        model.fingerprint(), build.name, build.precision, describe_versions()
    ):
        warnings.warn(change, stacklevel=2)
    policy = point.policy_object()
    cpu = torch.device("cpu")
    parts = build_parts(model, sorted(point.active), policy, device=cpu, dtype=torch.float32)
    with _new_folder(Path(folder), overwrite=overwrite) as place:
        files = build.write(parts, place)
        layouts = [part.layout for part in parts]
        verified = verify(build.open(files, layouts), parts, images)
        single = None
        if build.suffix == ".onnx" and build.precision == "float32":
            single = SINGLE
            memory = policy.start(1)
            write_single(
                files, layouts, place / single, memory=memory, metadata=_facts(model, point)
            )
        point.save(place / POINT)
        starts = [1, *(model.blocks[part.layout.exit_index] + 1 for part in parts[:-1])]
        manifest = Manifest(
            offramp=__version__,
            engine=build.name,
            precision=build.precision,
            model=model.config.backbone,
            fingerprint=model.fingerprint(),
            channels=model.chain.in_chans,
            preprocessing=model.preprocessing,
            task=model.config.task,
            num_classes=model.chain.num_classes,
            classes=model.labels,
            exit_names=model.exit_names,
            blocks=list(model.blocks),
            macs=None if point.macs is None else list(point.macs.leave_cost(point.active)),
            full_macs=None if point.macs is None else point.macs.full,
            segments=[
                SegmentFile(
                    file=file.name,
                    exit_name=model.exit_names[layout.exit_index],
                    blocks=(start, model.blocks[layout.exit_index]),
                    **layout._asdict(),
                )
                for file, layout, start in zip(files, layouts, starts, strict=True)
            ],
            single=single,
            policy=point.policy,
            promise=str(point.promise),
            promised=_promised(point),
            verified=verified,
            measured=measured or {},
            versions=describe_versions(),
            files={file.name: digest(file) for file in sorted(place.iterdir())},
        )
        write_json(place / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def load_bundle(folder: str | Path, *, threads: int | None = None) -> Runner:
    """Open an exported bundle: a runner without the model it came from.

    Args:
        folder: made by `export_bundle`.
        threads: CPU threads of one call; torch's number when omitted.

    Raises:
        OfframpError: for a folder that is no bundle, a file that was changed, a missing library.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    options = EngineOptions(precision=manifest.precision, threads=threads)
    build = ENGINES.get(manifest.engine)(options)
    if not isinstance(build, FileEngine):
        raise OfframpError(f"{folder / MANIFEST}: engine {manifest.engine!r} has no files")
    segments = manifest.segments
    program = build.open([folder / s.file for s in segments], [s.layout for s in segments])
    policy = None if manifest.policy is None else policy_from_config(manifest.policy)
    size = manifest.preprocessing.image_size
    return Runner(
        program,
        policy,
        check=InputCheck(manifest.channels, size, program.device, program.dtype),
        num_classes=manifest.num_classes,
        tables=ExitTables(
            blocks=torch.tensor(manifest.blocks),
            macs=None if manifest.macs is None else torch.tensor(manifest.macs).double(),
            temperatures=temperatures_of(policy),
            task=manifest.task,
        ),
        exit_names=manifest.exit_names,
        engine=manifest.engine,
    )


def is_bundle(folder: str | Path) -> bool:
    """Whether a folder holds an exported bundle."""
    return (Path(folder) / MANIFEST).is_file()


def _facts(model: "MultiExitModel", point: "OperatingPoint") -> dict[str, str]:
    """What a reader of ``single.onnx`` needs beside the graph, as JSON texts."""
    return {
        "preprocessing": model.preprocessing.model_dump_json(),
        "classes": json.dumps(model.labels),
        "exit_names": json.dumps(model.exit_names),
        "policy": json.dumps(point.policy),
    }


def _promised(point: "OperatingPoint") -> dict[str, Any]:
    keys = (
        "accuracy",
        "full_accuracy",
        "drop",
        "drop_error",
        "speedup_layers",
        "speedup_macs",
        "speedup_time",
        "exit_share",
        "dataset",
        "split",
        "n",
    )
    content = point.model_dump(mode="json", include=set(keys))
    return {key: content[key] for key in keys}


@contextmanager
def _new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder that gets its name when everything in it is written, or disappears."""
    if target.exists() and not (overwrite and is_bundle(target)):
        hint = "give overwrite to replace it" if is_bundle(target) else "choose another name"
        raise OfframpError(f"{target} already exists: {hint}")
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.with_name(f".{target.name}.partial")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)
    finally:
        shutil.rmtree(place, ignore_errors=True)
