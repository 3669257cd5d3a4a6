"""``offramp compare``: recipes and policies on one data set, at equal cost and equal accuracy."""

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.terminal import AsJson, bars, emit, show, table
from offramp.errors import OfframpError


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[:POLICY]",
            help="Run folders, each with the policy to judge it by (confidence when none is "
            "named). Runs of one recipe that differ by seed are averaged.",
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Run whose full model budgets and drops refer to; the first run when omitted."
        ),
    ] = None,
    budgets: Annotated[str, typer.Option(help="Shares of its MACs.")] = "0.4,0.5,0.6,0.7,0.8",
    drops: Annotated[
        str | None,
        typer.Option(
            help="Losses against it, in points of accuracy or in MAE.",
            show_default="0.5,1,2 points; 2, 5 and 10 % of its MAE",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Also calibrate and time each run on it, as openvino or openvino:bf16."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images timed per round.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images per batch when timing.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="FILE.json; table and plot go beside it as .md and .png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs, at equal cost and at equal accuracy.

    Shows accuracy at fixed budgets, MACs at fixed losses, mean accuracy over all budgets, measured
    time and training time. Settings are chosen on the calibration split and judged on the test
    split.

    Example: [bold]offramp compare runs/lgvit runs/joint runs/joint:patience[/]
    """
    from offramp.comparison import compare as compare_runs
    from offramp.comparison.timing import time_methods
    from offramp.files import write_atomic, write_json
    from offramp.report.comparison import markdown, save_comparison_plot, table_rows
    from offramp.tasks import task_named

    if out is not None and out.suffix != ".json":
        raise OfframpError(f"--out {out}: give a file that ends in .json")
    found = compare_runs(
        runs,
        reference=str(reference) if reference else None,
        budgets=_numbers("budgets", budgets),
        drops=_numbers("drops", drops) if drops is not None else None,
        progress=bars(as_json),
    )
    if engine is not None:
        name, _, precision = engine.partition(":")
        found = time_methods(
            found,
            runs,
            engine=name,
            precision=precision or None,
            images=images,
            batch_size=batch,
            progress=bars(as_json),
        )
    if out is not None:
        write_json(out, found.model_dump(mode="json"))
        write_atomic(out.with_suffix(".md"), markdown(found))
        save_comparison_plot(found, out.with_suffix(".png"))
    if as_json:
        emit(found.model_dump(mode="json"))
        return
    heads, rows = table_rows(found)
    accuracy = task_named(found.task).told(found.reference_accuracy)
    about = f"{accuracy}, {found.reference_macs / 1e6:.0f} M MACs"
    show(table(f"{found.dataset}, against {found.reference} ({about})", heads, rows))
    if out is not None:
        show(f"written: {out} and beside it .md and .png")


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise OfframpError(f"--{option} {text!r}: give numbers with commas between") from None
    if any(not number > 0 for number in numbers):
        raise OfframpError(f"--{option} {text!r}: each must be above 0")
    return numbers
