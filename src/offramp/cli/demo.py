"""``offramp demo``: the whole road on the embedded digits, from training to the report."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.terminal import AsJson, bars, duration, emit, say, show
from offramp.errors import OfframpError

RECIPE = Path(__file__).with_name("demo.yaml")
BATCH_SIZES = (1, 64)
IMAGES, ROUNDS = 192, 4


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to the demo's recipe: seed=1"),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    images: Annotated[int, typer.Option(min=64, help="Test images for timing.")] = IMAGES,
    as_json: AsJson = False,
) -> None:
    """The whole road on digits-grid, about four minutes.

    Images are 2×2 grids of one to four handwritten digits; the label is the largest one. A small
    vision transformer is trained alone, then with LGViT's exits; it is calibrated, evaluated on
    held-out images, timed and reported. RUNS/demo is replaced.

    Example: [bold]offramp demo[/]
    """
    from offramp.cli.bench import bench_run
    from offramp.cli.demo_summary import MAX_DROP, fastest_exit, summarise, summary
    from offramp.report import write_report
    from offramp.run_evaluation import evaluate_run
    from offramp.runs import calibrate_run, train_run
    from offramp.training.run_config import load_run_config

    config = load_run_config(RECIPE, overrides or [])
    progress = bars(as_json)
    folder = runs / config.name
    _clear(folder)
    with _step("train the plain model, then both stages with exits", as_json):
        run = train_run(config, folder, progress=progress)
    with _step(f"calibrate: at most {MAX_DROP:g} points lost", as_json):
        name, _ = calibrate_run(run, max_drop=MAX_DROP, name="chosen", progress=progress)
    with _step("evaluate on the test split", as_json):
        result = evaluate_run(run, split="test", progress=progress)
    with _step("time it next to the unmodified model", as_json):
        timed = bench_run(
            run,
            point=name,
            sizes=BATCH_SIZES,
            images=images,
            rounds=ROUNDS,
            progress=progress,
        )
        first = fastest_exit(run, BATCH_SIZES, images=images, rounds=ROUNDS, progress=progress)
    with _step("write the report", as_json):
        report = write_report(run)
    found = summarise(run, name, result, timed, first, report)
    if as_json:
        emit(found)
    else:
        show(*summary(run, found))


@contextmanager
def _step(text: str, as_json: bool) -> Iterator[None]:
    """Say what happens, and afterwards how long it took."""
    if not as_json:
        say(f"[bold]▸[/] {text}")
    start = time.monotonic()
    yield
    if not as_json:
        say(f"  [dim]{duration(time.monotonic() - start)}[/]")


def _clear(folder: Path) -> None:
    """Remove an earlier demo, and nothing that is not a run."""
    if not folder.exists():
        return
    ours = (folder / "recipe.yaml").is_file() or (folder / "metrics.jsonl").is_file()
    if not folder.is_dir() or (any(folder.iterdir()) and not ours):
        raise OfframpError(f"{folder}: not a run, so the demo does not replace it (use --runs)")
    shutil.rmtree(folder)
