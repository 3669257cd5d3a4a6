"""``offramp eval``: every exit and operating point on held-out data, from records."""

from typing import Annotated, Any

import typer

from offramp.cli.terminal import AsJson, Run, bars, emit, show, table


def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Accuracy and cost of every exit and operating point.

    Writes RUN/evaluation.json and the model card; records are kept and used again.

    Example: [bold]offramp eval runs/demo[/]
    """
    from offramp.report.tables import exits_table
    from offramp.runs import RunFolder, evaluate_run

    result = evaluate_run(RunFolder(run).check(), split=split, progress=bars(as_json))
    if as_json:
        emit(result)
        return
    show(exits_table(result))
    if not result["points"]:
        show(f"No operating point yet: offramp calibrate {run} --max-drop 0.5")
        return
    show(points_table(result["points"]))
    for name, found in result["points"].items():
        show(f"[bold]{name}[/]: {found['verdict']}.")


def points_table(found: dict[str, dict[str, Any]]) -> Any:
    """Operating points, each against the full model on the same samples."""
    from offramp.report.tables import percent, times

    rows = [
        (
            name,
            percent(point["accuracy"]),
            f"{-point['drop']:+.2f}",
            times(point["speedup_layers"]),
            times(point["speedup_macs"]),
            "kept" if point["kept"] else "[bold red]NOT kept[/]",
        )
        for name, point in found.items()
    ]
    return table("Points", ["point", "accuracy", "change", "layers", "MACs", "promise<"], rows)
