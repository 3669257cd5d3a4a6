"""The search for a cascade, as people read it."""

from typing import Any

from offramp.cascades import Plan, Pool
from offramp.cli.terminal import table
from offramp.report.tables import percent, signed, spread, times

ROWS = 16


def pool_table(pool: Pool) -> Any:
    """Every model alone."""
    rows = [
        (name, percent(100 * accuracy), _amount(cost, pool.unit))
        for name, accuracy, cost in zip(pool.names, pool.accuracy, pool.costs, strict=True)
    ]
    columns = ["model alone", "accuracy", f"{pool.unit} per image"]
    return table(f"{pool.count} samples", columns, rows)


def plans_table(pool: Pool, plans: list[Plan], chosen: Plan) -> Any:
    """The front, thinned to what fits a screen; the chosen plan always stands in it."""
    best = pool.costs[pool.best]
    shown = spread(plans, ROWS)
    if chosen not in shown:
        shown = sorted([*shown, chosen], key=lambda plan: plan.cost)
    rows = []
    for plan in shown:
        mark = "[bold]" if plan == chosen else ""
        rows.append(
            (
                f"{mark}{' → '.join(pool.names[m] for m in plan.members)}",
                ", ".join(f"{threshold:.3f}" for threshold in plan.thresholds) or "–",
                "mean" if plan.average else "",
                percent(100 * plan.accuracy),
                signed(0.0 - 100 * plan.drop),
                _amount(plan.cost, pool.unit),
                times(best / plan.cost),
            )
        )
    columns = ["plan", "surer than", "answer<", "accuracy", "change", pool.unit, "saves"]
    return table(f"{len(plans)} plans that no other beats", columns, rows)


def sentence(pool: Pool, chosen: Plan, max_drop: float) -> str:
    """What was chosen, in words."""
    plan = " → ".join(pool.names[m] for m in chosen.members)
    best = pool.names[pool.best]
    return (
        f"cheapest that loses at most {max_drop:g} points against {best}: [bold]{plan}[/], "
        f"{signed(0.0 - 100 * chosen.drop)} ± {196 * chosen.error:.2f} points, "
        f"{times(pool.costs[pool.best] / chosen.cost)} in {pool.unit}"
    )


def _amount(value: float, unit: str) -> str:
    return f"{value:.3f}" if unit == "ms" else f"{value / 1e6:,.1f} M"
