"""``offramp calibrate``: choose thresholds and active exits that keep a promise."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from offramp.cli.terminal import AsJson, Run, bars, emit, show, table, working
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.calibration import OperatingPoint
    from offramp.costs import CostTable
    from offramp.runs import RunFolder

TIMED_IMAGES = 64


class Cost(StrEnum):
    """What a point's cost is counted in."""

    macs = "macs"
    time = "time"


def calibrate(
    run: Run,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of accuracy it may lose against the full model; in regression, how much "
            "its MAE may rise."
        ),
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Share of the full model's cost it may take: 0.5")
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds that --quantile of the samples may take, one by one, by a table of "
            "median times; offramp bench judges it by measured ones."
        ),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(help="What may go wrong, proved: 0.01 for 1 % of samples with another label."),
    ] = None,
    certainty: Annotated[
        float | None,
        typer.Option(help="With --max-drop: how sure to be of it on other samples: 0.9"),
    ] = None,
    quantile: Annotated[
        str | None, typer.Option(help="With --max-latency-ms: p95 (default) or p50.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="With --risk: how probable a wrong proof may be; 0.1 when omitted."),
    ] = None,
    risk_kind: Annotated[
        str | None,
        typer.Option(
            help="With --risk: consistency (default), gap, brier_gap, brier_consistency, "
            "hellinger; in regression deviation, a share of samples, or mean_deviation, for which "
            "--risk is in the unit of the data."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="With --risk: ltt (default) or ucb; crc, which holds only on average; or naive, "
            "which proves nothing."
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(help="With --risk: per-exit thresholds (default), or one shared by all."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --risk-kind deviation: how far off does not count."),
    ] = None,
    cap: Annotated[
        float | None,
        typer.Option(
            help="With --risk-kind mean_deviation: what is further off counts as this far off."
        ),
    ] = None,
    search: Annotated[
        str, typer.Option(help="How thresholds are searched: coordinate or dynamic.")
    ] = "coordinate",
    smooth: Annotated[
        bool, typer.Option(help="Search on smooth curves of expected worth, or on plain outcomes.")
    ] = True,
    temperatures: Annotated[
        bool, typer.Option("--temperatures", help="Fit a softmax temperature per exit first.")
    ] = False,
    policy: Annotated[str, typer.Option(help="See offramp list policies.")] = "confidence",
    policy_option: Annotated[
        list[str] | None,
        typer.Option(help="What the policy may be told, as keep=0.3 for boosted. (repeat)"),
    ] = None,
    cost: Annotated[Cost, typer.Option(help="Search on MACs or on time measured here.")] = (
        Cost.macs
    ),
    batch_size: Annotated[
        int, typer.Option(min=1, help="Batch size for --cost time and for auto.")
    ] = 1,
    engine: Annotated[str, typer.Option(help="Engine it will run on.")] = "torch",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16 or int8, as the engine can; its default when omitted."),
    ] = None,
    reducer: Annotated[
        str | None,
        typer.Option(
            help="Choose under a token reducer that needs no training: tome, '{name: tome, r: 8}'; "
            "the run's own when omitted."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Keep ratios of the reducer to choose from, with the thresholds: 1,0.7,0.5; auto "
            "takes those that save time here at --batch-size."
        ),
    ] = None,
    r: Annotated[
        str | None, typer.Option(help="The same for ToMe, tokens merged per block: 0,4,8; or auto.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to choose on; never test.")] = "calibration",
    name: Annotated[
        str | None, typer.Option(help="Name of the point; by default from policy and target.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the thresholds and exits that keep a promise.

    Give exactly one target: --max-drop, --max-cost, --max-latency-ms or --risk. The operating point
    is saved as RUN/points/NAME.json. It belongs to one engine and precision, because confidences
    shift from one to the other.

    Example: [bold]offramp calibrate runs/demo --max-drop 0.5[/]
    """
    from offramp.calibration.search import SEARCHES
    from offramp.calibration.wish import Wanted, Wish
    from offramp.cli.strengths import strengths
    from offramp.joint_calibration import calibrate_jointly
    from offramp.policies import POLICIES
    from offramp.runs import RunFolder, calibrate_run
    from offramp.runtime import ENGINES, EngineOptions

    SEARCHES.get(search)
    told = dict(map(_told, policy_option or []))
    POLICIES.get(policy).check_options(told)  # refused before the long pass over the data
    ENGINES.get(engine)(EngineOptions(precision=precision))
    wanted = Wanted(
        policy=policy,
        policy_options=told,
        max_drop=max_drop,
        max_cost=max_cost,
        max_latency_ms=max_latency_ms,
        risk=risk,
        certainty=certainty,
        quantile=quantile,
        delta=delta,
        risk_kind=risk_kind,
        method=method,
        path=path,
        tolerance=tolerance,
        cap=cap,
        temperatures=temperatures,
        search=search,
        smooth=smooth,
    )
    Wish(**wanted).check(_flag)
    if max_latency_ms is not None and batch_size != 1:
        raise OfframpError("--max-latency-ms is about single samples: leave out --batch-size")
    _check(split, name)
    folder = RunFolder(run).check()
    timed = cost is Cost.time or max_latency_ms is not None
    setting: dict[str, Any] = {
        "engine": engine,
        "precision": precision,
        "name": name,
        "split": split,
        "progress": bars(as_json),
    }

    def clock(subject: "RunFolder") -> "dict[int, CostTable]":
        return _latencies(subject, batch_size, engine, precision, as_json)

    with working("looking at the reducer's strengths", as_json):
        grid = strengths(
            folder,
            reducer=reducer,
            keep=keep,
            r=r,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
        )
    if grid is None:
        saved, point = calibrate_run(
            folder, times=clock(folder) if timed else None, **setting, **wanted
        )
    else:
        saved, point = calibrate_jointly(
            folder,
            grid.specs,
            clock=clock if timed else None,
            notes=grid.notes,
            **setting,
            **wanted,
        )
    file = folder.path / "points" / f"{saved}.json"
    if as_json:
        chosen = point.model_dump(mode="json", exclude={"probes"})
        emit({"name": saved, "path": str(file), "point": chosen})
        return
    show(*described(saved, point), f"saved: [bold]{file}[/]", f"next: offramp eval {run}")


def described(name: str, point: "OperatingPoint") -> list[Any]:
    """An operating point as people read it: its exits, then what it does."""
    from offramp.report.tables import percent, threshold, threshold_name, times
    from offramp.tasks import task_named

    last, task = len(point.exit_names) - 1, task_named(point.task)
    rows = []
    for k, exit in enumerate(point.exit_names):
        on = k in point.active
        state = "always" if k == last else "on" if on else "[dim]off[/]"
        share = percent(100 * point.exit_share[k], 1) if on or k == last else "–"
        rows.append((exit, state, threshold(point, k) if on else "–", share))
    columns = ["exit", "active<", threshold_name(point), "samples leaving"]
    time = f", time {times(point.speedup_time)}" if point.speedup_time is not None else ""
    parts = [f"{count:,} for the {name}" for name, count in point.samples.items()]
    return [
        table(name, columns, rows),
        f"promise: {point.promise}",
        *([] if point.reducer is None else [f"tokens: {point.reducer}"]),
        *(["calibration samples: " + ", ".join(parts)] if len(parts) > 1 else []),
        *point.notes,
        f"on {point.n} {point.split} samples of {point.dataset}: {task.metric} "
        f"{task.show(point.accuracy)}, full model {task.show(point.full_accuracy)} "
        f"({task.show_change(point.drop)} ± {1.96 * point.drop_error:.2f} {task.unit})",
        f"speed-up: layers {times(point.speedup_layers)}, MACs {times(point.speedup_macs)}{time}; "
        f"cost {point.cost_share:.3f} of the full model's {point.costs.unit}",
    ]


def _told(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise OfframpError(f"--policy-option {text!r}: write name=value, e.g. keep=0.3")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise OfframpError(f"--policy-option {name}: {value!r} is not valid YAML") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check(split: str, name: str | None) -> None:
    if split == "test":
        raise OfframpError(
            "calibration on the test split is refused: thresholds chosen there would make every "
            "number reported on it worthless (use --split calibration)"
        )
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise OfframpError(f"--name {name!r}: use letters, digits, '-', '_' and '.'")


def _latencies(
    run: "RunFolder", batch_size: int, engine: str, precision: str | None, as_json: bool
) -> "dict[int, CostTable]":
    from offramp.calibration.batch_time import survivor_sizes
    from offramp.runtime import latency_table

    images = run.images("calibration", max(TIMED_IMAGES, batch_size))
    options = run.engine_options(engine, precision)
    with working(f"measuring time at batch {batch_size} on {engine}", as_json):
        sizes = survivor_sizes(batch_size)
        return latency_table(run.model, images, sizes, engine=engine, options=options)
