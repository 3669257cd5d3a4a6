"""Peak memory of a runner, measured in a process of its own: ``python -m offramp.footprint``."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offramp.errors import OfframpError
from offramp.runtime.bundle import export_bundle, is_bundle, load_bundle
from offramp.runtime.compiling import compile_runner
from offramp.runtime.engines import ENGINES, FileEngine
from offramp.runtime.runner import Runner

if TYPE_CHECKING:
    from offramp.runs import RunFolder

ROUNDS = 5
VERIFIED_ON = 16  # real images an exported bundle is compared with torch on


def peak_memory(folder: Path, batch_size: int, **setting: Any) -> float:
    """Peak resident memory in MiB of a fresh process that answers a few batches.

    Args:
        folder: an exported bundle, or a run.
        batch_size: images per batch.
        setting: for a run, as `run_runner` takes it.
    """
    request = json.dumps({"folder": str(folder), "batch_size": batch_size, "setting": setting})
    command = [sys.executable, "-m", "offramp.footprint", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OfframpError(f"measuring the memory of {folder} failed: {reason}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def peak_memories(
    run: "RunFolder", point: str, batch_size: int, *, threads: int | None = None
) -> tuple[float, float]:
    """Peak memory in MiB at an operating point, and of the unmodified model on the same engine.

    Engines that run files are measured on exported bundles, as they would be deployed; torch in a
    process that loads the run.
    """
    from offramp.reduced_run import reduced_run

    name, chosen = run.point(point)
    if not issubclass(ENGINES.get(chosen.engine), FileEngine):
        settings = ({"engine": chosen.engine, "point": p, "threads": threads} for p in (name, None))
        dynamic, full = (peak_memory(run.path, batch_size, **setting) for setting in settings)
        return dynamic, full
    options = run.engine_options(chosen.engine, chosen.precision)
    peaks = []
    with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
        plain = {"active": (), "reducer": None, "fingerprint": run.model.fingerprint()}
        for number, either in enumerate((chosen, chosen.model_copy(update=plain))):
            bundle = Path(folder) / str(number)
            export_bundle(
                reduced_run(run, either.reducer).model,
                either,
                bundle,
                images=run.images("calibration", VERIFIED_ON),
                calibration=options.calibration,
            )
            peaks.append(peak_memory(bundle, batch_size, threads=threads))
    return peaks[0], peaks[1]


def run_runner(
    folder: Path, *, engine: str, point: str | None, threads: int | None = None
) -> Runner:
    """The runner of a run: at a point, or of the unmodified model when ``point`` is None."""
    from offramp.reduced_run import reduced_run
    from offramp.runs import RunFolder

    run = RunFolder(folder).check()
    if point is None:
        return compile_runner(run.model, active=(), engine=engine, threads=threads)
    chosen = run.point(point)[1]
    return compile_runner(reduced_run(run, chosen.reducer).model, chosen, threads=threads)


def _answer(folder: Path, batch_size: int, setting: dict[str, Any]) -> None:
    threads = setting.get("threads") or torch.get_num_threads()
    torch.set_num_threads(threads)
    if is_bundle(folder):
        runner = load_bundle(folder, threads=threads)
    else:
        runner = run_runner(folder, **setting)
    generator = torch.Generator().manual_seed(0)
    for _ in range(ROUNDS):
        runner(torch.randn(batch_size, *runner.image_shape, generator=generator))


def _main() -> None:
    request = json.loads(sys.argv[1])
    _answer(Path(request["folder"]), request["batch_size"], request["setting"])
    sys.stdout.write(json.dumps({"peak_mib": _peak()}) + "\n")


def _peak() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would count the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


if __name__ == "__main__":
    _main()
