"""Terminal tables: layers, MACs and time stand side by side and are never mixed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from offramp.calibration import Evaluation, OperatingPoint
from offramp.report.timing import NOT_MEASURED, Timing, read_timing
from offramp.tasks import Task, figure_keys, figure_name, task_named

Json = Mapping[str, Any]
SPEEDUPS = ("layers", "MACs", "time")


def exits_table(evaluation: Json) -> Table:
    """Every exit, if all samples left there: the content of ``evaluation.json`` as a table."""
    task, keys = task_of(evaluation), figure_keys(evaluation["exits"][0])
    names = [figure_name(key) for key in keys]
    found = _table(_about(evaluation), ["everything leaves at", *names, "layers", "MACs"])
    for row in evaluation["exits"]:
        shown = [task.show(row[key]) for key in keys]
        found.add_row(row["name"], *shown, times(row["layers"]), times(row["macs"]))
    if plain := evaluation.get("plain"):
        found.add_section()
        shown = [task.show(plain.get(key)) for key in keys]
        found.add_row("plain backbone, trained alone", *shown)
    return found


def task_of(described: Json) -> Task:
    """The task of an evaluation, or of a point, in their JSON form."""
    return task_named(described.get("task") or "classification")


def point_table(
    name: str, point: OperatingPoint, evaluation: Evaluation | Json | None = None
) -> Table:
    """An operating point exit by exit: threshold, who leaves, how right they are.

    ``evaluation`` (an `Evaluation` or its JSON) gives held-out numbers; without it shares are those
    of the calibration split.
    """
    held_out = None if evaluation is None else Evaluation.model_validate(evaluation)
    share = held_out.exit_share if held_out else point.exit_share
    split = held_out.split if held_out else point.split
    task = task_named(point.task)
    heads = ["exit", threshold_name(point), "samples leaving", f"{task.metric} of those"]
    found = _table(f"{name} on the {split} split", heads)
    for k, exit_name in enumerate(point.exit_names):
        last = k == len(point.exit_names) - 1
        on = last or k in point.active
        found.add_row(
            exit_name,
            "always" if last else threshold(point, k) if on else "[dim]off[/]",
            percent(100 * share[k], 1) if on else "[dim]–[/]",
            task.show(held_out.leaver_accuracy[k] if held_out else None),
        )
    return found


def front_table(point: OperatingPoint, *, rows: int = 12) -> Table:
    """At most ``rows`` settings of a point's front, on its calibration split, dearest first."""
    task = task_named(point.task)
    found = _table(
        f"Front of {point.policy['name']}, {point.n} {point.split} samples",
        [task.metric, f"lost, {task.unit}", "exits on", *SPEEDUPS],
    )
    for setting in spread(list(reversed(point.front)), rows):
        found.add_row(
            task.show(setting.accuracy),
            f"{setting.drop:.2f}",
            str(len(setting.active)),
            times(setting.speedup_layers),
            times(setting.speedup_macs),
            times(setting.speedup_time),
        )
    return found


def bench_table(benchmark: Json | Timing) -> Table:
    """Measured time per image next to the unmodified backbone: what ``benchmark.json`` holds."""
    timing = benchmark if isinstance(benchmark, Timing) else read_timing(benchmark)
    heads = [
        "engine",
        "batch",
        "full, ms",
        "point, ms",
        *SPEEDUPS,
        "time / MACs",
        "no-exit overhead",
    ]
    found = _table(f"{timing.point or 'policy'}, milliseconds per image", heads)
    for result in timing.results:
        for batch in result.batches:
            found.add_row(
                result.engine,
                str(batch.batch_size),
                f"{batch.full_ms:.3f}",
                f"{batch.dynamic_ms:.3f}",
                times(batch.speedup_layers),
                times(batch.speedup_macs),
                f"[bold]{times(batch.speedup_time)}[/]",
                f"{batch.efficiency:.2f}",
                f"{signed(100 * (batch.no_exit_overhead - 1), 1)} %",
            )
    return found


def summary_table(
    evaluation: Json,
    name: str,
    benchmark: Json | None = None,
    fastest: Sequence[Json] | None = None,
) -> Table:
    """Full model, chosen point, fastest exit: accuracy and the three speed-ups.

    Args:
        evaluation: content of ``evaluation.json``.
        name: operating point to show.
        benchmark: content of ``benchmark.json``; time is left open without it.
        fastest: measured batches (`BatchBench` as JSON) of everything leaving at the first exit.
    """
    timing = read_timing(benchmark)
    batches = timing.batches(name)
    sizes = [batch.batch_size for batch in batches]
    heads = [f"time, batch {size}" for size in sizes] or ["time"]
    task = task_of(evaluation)
    found = _table(_about(evaluation), ["", task.metric, "layers", "MACs", *heads])
    open_ = ["–"] * len(heads)
    if evaluation.get("plain"):
        plain = task.show(evaluation["plain"][task.key])
        found.add_row("plain backbone", plain, times(1), times(1), *_ones(sizes))
    full, first = evaluation["exits"][-1], evaluation["exits"][0]
    point = evaluation["points"][name]
    found.add_row("full model", task.show(full[task.key]), times(1), times(1), *_ones(sizes))
    found.add_row(
        f"point {name}",
        task.show(point["accuracy"]),
        times(point["speedup_layers"]),
        times(point["speedup_macs"]),
        *([times(batch.speedup_time) for batch in batches] or open_),
        style="bold",
    )
    speed = {batch["batch_size"]: batch["speedup_time"] for batch in fastest or ()}
    found.add_row(
        f"fastest exit ({first['name']})",
        task.show(first[task.key]),
        times(first["layers"]),
        times(first["macs"]),
        *([times(speed.get(size)) for size in sizes] or open_),
    )
    if not batches:
        found.caption = f"time {NOT_MEASURED}"
    return found


def threshold_name(point: OperatingPoint) -> str:
    """What the thresholds of a point's policy are called, with their unit."""
    name = point.policy["name"]
    known = {
        "entropy": "entropy below, nats",
        "patience": "patience",
        "settled": "times in a row, moved less than",
    }
    return known.get(name, f"{name} above")


def threshold(point: OperatingPoint, k: int) -> str:
    """Threshold of exit ``k`` as people read it; entropy is stored with its sign turned."""
    if point.thresholds is None:
        shared = [point.policy[key] for key in ("patience", "tolerance") if key in point.policy]
        return ", ".join(f"{value:.4g}" for value in shared) or "–"
    value = point.thresholds[k]
    return f"{-value if point.policy['name'] == 'entropy' else value:.4f}"


def spread(settings: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the settings, evenly spread, with the first and the last."""
    if len(settings) <= count:
        return list(settings)
    return [settings[round(i * (len(settings) - 1) / (count - 1))] for i in range(count)]


def percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f} %"


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _ones(sizes: Sequence[int]) -> list[str]:
    return [times(1) for _ in sizes] or ["–"]


def _about(evaluation: Json) -> str:
    return "{dataset}, {split} split, {samples} samples".format(**evaluation)


def _table(title: str, heads: Iterable[str]) -> Table:
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        made.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    return made
