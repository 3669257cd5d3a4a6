"""``offramp eval``: every exit and operating point on held-out data, from records."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.calibrate import Cost
from offramp.cli.terminal import AsJson, Run, bars, emit, show, table, working
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.anytime import Anytime
    from offramp.runs import RunFolder

TIMED_IMAGES = 64


def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    anytime: Annotated[
        bool,
        typer.Option("--anytime", help="Accuracy against budget instead; RUN/anytime.json."),
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="How far to trust the answers instead; RUN/uncertainty.json."
        ),
    ] = False,
    outside: Annotated[
        str | None,
        typer.Option(help="With --uncertainty: a data set that is foreign to the model."),
    ] = None,
    sets_from: Annotated[
        str, typer.Option(help="With --uncertainty: split to calibrate prediction sets on.")
    ] = "validation",
    cost: Annotated[
        Cost, typer.Option(help="With --anytime: budgets in MACs, or in time measured here.")
    ] = Cost.macs,
    engine: Annotated[str, typer.Option(help="With --anytime: what runs the model.")] = "torch",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16 or int8, as the engine can; its default when omitted."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size for --cost time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Accuracy (or MAE and RMSE) and cost of every exit and operating point.

    Writes RUN/evaluation.json and the model card; records are kept and used again. --anytime says
    instead how accurate the newest exit that fits a budget is, for fixed, uniform and bursty
    budgets. --uncertainty instead measures calibration errors, proper scores, selective risk and
    prediction sets.

    Example: [bold]offramp eval runs/demo --anytime --cost time[/]
    """
    from offramp.report.tables import exits_table
    from offramp.run_evaluation import evaluate_run
    from offramp.runs import RunFolder

    if anytime and uncertainty:
        raise OfframpError("--anytime and --uncertainty are two questions: ask one at a time")
    if (outside, sets_from) != (None, "validation") and not uncertainty:
        raise OfframpError("--outside and --sets-from need --uncertainty")
    if anytime:
        folder = RunFolder(run).check()
        found = _anytime(folder, split, cost, engine, precision, batch_size, as_json)
        _show_anytime(folder, found, as_json)
        return
    if (cost, engine, precision, batch_size) != (Cost.macs, "torch", None, 1):
        raise OfframpError("--cost, --engine, --precision and --batch-size need --anytime")
    if uncertainty:
        _uncertainty(RunFolder(run).check(), split, sets_from, outside, as_json)
        return
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


def _anytime(
    run: "RunFolder",
    split: str,
    cost: Cost,
    engine: str,
    precision: str | None,
    batch_size: int,
    as_json: bool,
) -> "Anytime":
    from offramp.anytime import anytime_run
    from offramp.runtime import latency_table

    options = run.engine_options(engine, precision)
    records = run.records(split, engine=engine, precision=precision, progress=bars(as_json))
    costs = run.costs
    if cost is Cost.time:
        images = run.images(split, max(TIMED_IMAGES, batch_size))
        with working(f"measuring time at batch {batch_size} on {engine}", as_json):
            tables = latency_table(run.model, images, [batch_size], engine=engine, options=options)
        costs = tables[batch_size]
    return anytime_run(run, records, costs)


def _show_anytime(run: "RunFolder", found: "Anytime", as_json: bool) -> None:
    from offramp.anytime import ANYTIME
    from offramp.report.anytime import budgets_table, exits_table, save_anytime_plot, sentences

    plot = save_anytime_plot(found, run.path / "plots" / "anytime.png")
    if as_json:
        emit(found.model_dump(mode="json"))
        return
    show(exits_table(found), budgets_table(found), *sentences(found))
    show(f"written: {run.path / ANYTIME}, {plot}")


def _uncertainty(
    run: "RunFolder", split: str, sets_from: str, outside: str | None, as_json: bool
) -> None:
    from offramp.report.uncertainty import save_selective_plot, sentences, tables
    from offramp.uncertainty.evaluation import UNCERTAINTY, uncertainty_run

    found = uncertainty_run(
        run, split=split, sets_from=sets_from, outside=outside, progress=bars(as_json)
    )
    plot = save_selective_plot(found, run.path / "plots" / "uncertainty.png")
    if as_json:
        emit(found.model_dump(mode="json"))
        return
    show(*tables(found), *(f"{sentence}." for sentence in sentences(found)))
    show(f"written: {run.path / UNCERTAINTY}, {plot}")


def points_table(found: dict[str, dict[str, Any]]) -> Any:
    """Operating points, each against the full model on the same samples."""
    from offramp.report.tables import task_of, times

    task = task_of(next(iter(found.values())))
    rows = [
        (
            name,
            task.show(point["accuracy"]),
            task.show_change(point["drop"]),
            times(point["speedup_layers"]),
            times(point["speedup_macs"]),
            "kept" if point["kept"] else "[bold red]NOT kept[/]",
        )
        for name, point in found.items()
    ]
    return table("Points", ["point", task.metric, "change", "layers", "MACs", "promise<"], rows)
