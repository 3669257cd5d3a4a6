"""``offramp cascade``: which trained models one behind the other, and how sure each must be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.calibrate import described
from offramp.cli.terminal import AsJson, bars, emit, show, working
from offramp.errors import OfframpError

if TYPE_CHECKING:
    from offramp.cascades import Plan, Pool
    from offramp.cascades.contestants import Contestant


class Cost(StrEnum):
    """What asking a model costs."""

    time = "time"
    macs = "macs"


def cascade(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@SIZE,…]",
            help="Trained runs; with sizes in pixels also one run at several: runs/tiny@112,224",
        ),
    ],
    max_drop: Annotated[
        float, typer.Option(help="Points of accuracy it may lose against the best of them alone.")
    ] = 0.5,
    models: Annotated[int, typer.Option(min=2, max=3, help="Most models in a cascade.")] = 3,
    average: Annotated[
        bool, typer.Option("--average", help="Also try the mean of the logits so far as answer.")
    ] = False,
    cost: Annotated[
        Cost, typer.Option(help="Time measured here, or multiply-accumulates.")
    ] = Cost.time,
    engine: Annotated[str, typer.Option(help="Engine it will run on.")] = "torch",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16 or int8, as the engine can; its default when omitted."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size for --cost time.")] = 1,
    split: Annotated[str, typer.Option(help="Split to choose on; never test.")] = "calibration",
    out: Annotated[
        Path | None, typer.Option(help="Write the chosen cascade as a run: runs/NAME")
    ] = None,
    exits: Annotated[
        bool, typer.Option("--exits", help="With --out: keep the models' own early exits.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="With --out: name of its point.")] = None,
    as_json: AsJson = False,
) -> None:
    """The best cascades of trained models.

    Searches every pair and triple, and every threshold, on records and measured times; shows those
    that no other beats. The cheapest that keeps --max-drop is chosen; with --out it becomes a run
    with an operating point, calibrated on records of its own.

    Example: [bold]offramp cascade runs/tiny@112,224 runs/small --out runs/cascade[/]
    """
    from offramp.cascades import as_document, best_plan, search
    from offramp.cascades.contestants import contestants, pool_of
    from offramp.cli.cascade_tables import plans_table, pool_table, sentence
    from offramp.runtime import ENGINES, EngineOptions

    ENGINES.get(engine)(EngineOptions(precision=precision))
    _check(max_drop, split, out, exits=exits, name=name)
    given = contestants(runs)
    if len(given) < 2:
        raise OfframpError("a cascade needs two models at least: give two runs, or RUN@112,224")
    unit = "ms" if cost is Cost.time else "MACs"
    costs = _costs(given, cost, engine, precision, batch_size, as_json)
    pool = pool_of(
        given,
        costs,
        unit=unit,
        split=split,
        engine=engine,
        precision=precision,
        logits=average,
        progress=bars(as_json),
    )
    with working("searching", as_json):
        plans = search(pool, longest=models, average=average)
    chosen = best_plan(plans, max_drop=max_drop)
    document = as_document(pool, plans, chosen) | {"max_drop": max_drop}
    if not as_json:
        show(pool_table(pool), plans_table(pool, plans, chosen), sentence(pool, chosen, max_drop))
    if out is not None:
        document |= _written(
            [given[_index(given, pool.names[m])] for m in chosen.members],
            pool,
            chosen,
            out,
            max_drop=max_drop,
            exits=exits,
            name=name,
            batch_size=batch_size if cost is Cost.time else None,
            setting={"split": split, "engine": engine, "precision": precision},
            as_json=as_json,
        )
    if as_json:
        emit(document)


def _written(
    given: "list[Contestant]",
    pool: "Pool",
    chosen: "Plan",
    out: Path,
    *,
    max_drop: float,
    exits: bool,
    name: str | None,
    batch_size: int | None,
    setting: dict[str, Any],
    as_json: bool,
) -> dict[str, Any]:
    """Save the chosen cascade as a run, calibrate it, and say so."""
    from offramp.cascades.folder import promise, save_cascade

    if len(given) == 1:
        raise OfframpError(
            f"{given[0].name} alone is the cheapest that keeps the promise, so no cascade was "
            "written (see the other plans, and try another --max-drop)"
        )
    run = save_cascade(given, out, average=chosen.average, exits=exits)
    saved, point = promise(
        run,
        pool,
        max_drop,
        name=name,
        batch_size=batch_size,
        progress=bars(as_json),
        **setting,
    )
    if not as_json:
        show(*described(saved, point), f"written: [bold]{out}[/]", f"next: offramp eval {out}")
    found = point.model_dump(mode="json", exclude={"probes"})
    return {"run": str(out), "point": found, "name": saved}


def _check(max_drop: float, split: str, out: Path | None, *, exits: bool, name: str | None) -> None:
    if split == "test":
        raise OfframpError(
            "choosing on the test split is refused: every number reported on it would be worthless "
            "(use --split calibration)"
        )
    if not 0 <= max_drop <= 100:
        raise OfframpError(f"--max-drop {max_drop:g}, but it must be points of accuracy, 0 … 100")
    if out is None and (exits or name is not None):
        raise OfframpError(f"{'--exits' if exits else '--name'} needs --out")
    if out is not None and (out / "config.json").exists():
        raise OfframpError(f"{out} already holds a finished run (choose another name)")


def _costs(
    given: "list[Contestant]",
    cost: Cost,
    engine: str,
    precision: str | None,
    batch_size: int,
    as_json: bool,
) -> list[float]:
    from offramp.cascades.contestants import ROUNDS, macs_of, times_of

    if cost is Cost.macs:
        return macs_of(given)
    with _bar(len(given) * (ROUNDS + 1), as_json) as advance:
        return times_of(
            given, engine=engine, precision=precision, batch_size=batch_size, advance=advance
        )


@contextmanager
def _bar(turns: int, as_json: bool) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not bars(as_json)) as bar:
        task = bar.add_task("timing", total=turns)
        yield lambda: bar.advance(task)


def _index(given: "list[Contestant]", name: str) -> int:
    return next(i for i, contestant in enumerate(given) if contestant.name == name)
