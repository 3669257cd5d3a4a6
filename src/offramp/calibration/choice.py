"""Calibrate: choose the operating point that keeps a promise."""

from collections.abc import Mapping
from typing import Any

from offramp.calibration.describing import Tables, make_point
from offramp.calibration.enumeration import enumerate_settings
from offramp.calibration.front import Setting
from offramp.calibration.point import OperatingPoint
from offramp.calibration.records import Records
from offramp.calibration.risk.control import RiskBound, prove
from offramp.calibration.risk.paths import Quest
from offramp.calibration.search import SEARCHES
from offramp.calibration.splits import FIT, cut
from offramp.calibration.targets import OutOfReachError, Target
from offramp.calibration.temperature import fit_temperatures
from offramp.calibration.threshold_settings import ThresholdSettings
from offramp.calibration.wish import Wish
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies.base import POLICIES, Parameters, Policy
from offramp.policies.threshold import ThresholdPolicy


def calibrate(
    records: Records,
    *,
    policy: str = "confidence",
    policy_options: Mapping[str, Any] | None = None,
    max_drop: float | None = None,
    max_cost: float | None = None,
    max_latency_ms: float | None = None,
    risk: float | None = None,
    costs: CostTable | None = None,
    macs: CostTable | None = None,
    time: CostTable | None = None,
    temperatures: bool = False,
    certainty: float | None = None,
    quantile: str | None = None,
    delta: float | None = None,
    risk_kind: str | None = None,
    method: str | None = None,
    path: str | None = None,
    tolerance: float | None = None,
    cap: float | None = None,
    smooth: bool = True,
    search: str = "coordinate",
) -> OperatingPoint:
    """Choose thresholds and active exits that keep a promise; the whole front comes along.

    Exactly one target is given. What is fitted, what is chosen and what is proved never see the
    same sample: the records are cut by a hash of their ids.

    Args:
        records: what every exit said about the calibration split.
        policy: a registered policy.
        policy_options: what its family may be told before it learns, `Policy.options`.
        max_drop: percentage points of accuracy it may lose against the full model; in regression
            how much its MAE may be above the full model's.
        max_cost: share of the unmodified model's cost it may take.
        max_latency_ms: milliseconds at batch size 1 that ``quantile`` of the samples may take.
        risk: what the mean of a loss may be on new samples, such as 0.01; proved, not estimated. It
            is in the unit of the loss: a share of samples, a Brier score, the unit of the data.
        costs: table to search on, in MACs or ms; by default the MACs stored in the records, or
            blocks where there are none.
        macs: MAC table to report when ``costs`` is another.
        time: latency table to report when ``costs`` is another; what ``max_latency_ms`` is about.
        temperatures: fit a softmax temperature per exit first; a risk of probabilities is then
            proved of probabilities at these temperatures, the full model's too.
        certainty: for ``max_drop``: demand that the loss, judged by its standard error on these
            samples, is within the promise with this probability (0.5 … 1); no guarantee.
        quantile: for ``max_latency_ms``: ``p95`` (default) or ``p50``.
        delta: for ``risk``: how probable a wrong proof may be (0.1).
        risk_kind: for ``risk``: ``consistency`` (default), ``gap``, ``brier_gap``,
            ``brier_consistency``, ``hellinger``; for regression ``deviation`` (a share of
            samples) or ``mean_deviation`` (in the unit of the data).
        method: for ``risk``: ``ltt`` (default), ``ucb``, ``crc``, or ``naive``, to compare with.
        path: for ``risk``: ``per-exit`` thresholds (default), or one ``shared`` by all exits.
        tolerance: for ``deviation``: how far from the full model's number does not count.
        cap: for ``mean_deviation``: larger distances from the full model's number count as it.
        smooth: search on smooth curves of expected worth instead of plain outcomes (see
            `offramp.calibration.smoothing`).
        search: ``coordinate`` ascent or ``dynamic`` programming over per-exit thresholds.

    Raises:
        OfframpError: for records of the test split, not exactly one target, a target that no point
            reaches (with the closest), what does not go together, or tables that do not fit.
    """
    wish = Wish(
        policy=policy,
        policy_options=dict(policy_options or {}),
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
    ).check()
    if records.meta.split == "test":
        raise OfframpError(
            "calibration on the test split would make every reported number worthless: collect "
            "split='calibration'"
        )
    family = _family(policy, records, search=search, temperatures=temperatures)
    family.check_options(wish.policy_options)
    if wish.max_latency_ms is not None:
        costs = time or costs
    costs = costs or records.meta.costs or block_costs(records)
    for table in (costs, macs, time):
        if table is not None and table.num_exits != records.num_exits:
            raise OfframpError(
                f"the cost table has {table.num_exits} exits, the records {records.num_exits}"
            )
    tables = Tables(records, costs, macs, time)
    shares = {"fit": FIT} if temperatures or family.learns else {}
    bound = wish.bound()
    if bound is None:
        parts = cut(records, {**shares, "thresholds": 1 - sum(shares.values())})
        fitted = _fit(family, parts.get("fit", parts["thresholds"]), wish)
        parts = {name: part.under(family, fitted) for name, part in parts.items()}
        target = wish.target(parts["thresholds"], costs)
        settings = _settings(
            family, parts["thresholds"], costs, target, fitted, smooth=smooth, search=search
        )
        try:
            chosen = target.choose(settings)
        except OutOfReachError as error:
            error.front = tables.front(settings, parts["thresholds"])
            raise
        return make_point(
            chosen, settings, target.promise, wish, parts, parts["thresholds"], records, tables
        )
    bound.check(family, records.meta.task)
    parts = cut(records, {**shares, **bound.shares()})
    fitted = _fit(family, parts.get("fit", records), wish)
    parts = {name: part.under(family, fitted) for name, part in parts.items()}
    bound = bound.scaled(fitted.get("temperatures"))
    quest = Quest(
        family,
        fitted,
        bound.loss,
        bound.level.risk,
        costs,
        records.meta,
        search=search,
        smooth=smooth,
    )
    return _proved(bound, quest, wish, parts, records, tables)


def block_costs(records: Records) -> CostTable:
    """A table that counts blocks, with free heads: the layer speed-up."""
    run = records.meta.blocks_run
    body = tuple(float(b - a) for a, b in zip([0, *run[:-1]], run, strict=True))
    return CostTable(
        unit="blocks", body=body, head=(0.0,) * len(run), full=float(records.meta.baseline_blocks)
    )


def _family(policy: str, records: Records, *, search: str, temperatures: bool) -> type[Policy]:
    """The family, or a refusal of what it has no use for."""
    family = POLICIES.get(policy)
    family.check_task(records.meta.task)
    SEARCHES.get(search)
    if not issubclass(family, ThresholdPolicy):
        if temperatures:
            raise OfframpError(f"policy {policy!r} has no temperatures")
        if search != Wish().search:
            raise OfframpError(
                f"search {search!r} is for policies with one threshold per exit, not for {policy!r}"
            )
    return family


def _fit(family: type[Policy], records: Records, wish: Wish) -> Parameters:
    """What members of the family are given besides what is searched."""
    fitted = family.fit(records, **wish.policy_options)
    return {**fitted, "temperatures": fit_temperatures(records)} if wish.temperatures else fitted


def _settings(
    family: type[Policy],
    records: Records,
    costs: CostTable,
    target: Target,
    fitted: Parameters,
    *,
    smooth: bool,
    search: str,
) -> list[Setting]:
    if issubclass(family, ThresholdPolicy):
        found = ThresholdSettings(
            family, records, costs, fitted=fitted, smooth=smooth, search=search
        )
        return found.all(target.around)
    return enumerate_settings(
        family, records, costs, fitted=fitted, holds=target.border, smooth=smooth
    )


def _proved(
    bound: RiskBound,
    quest: Quest,
    wish: Wish,
    parts: Mapping[str, Records],
    records: Records,
    tables: Tables,
) -> OperatingPoint:
    """The last proved setting of a path; its numbers are those of the proof's samples."""
    proof = prove(bound, bound.path.make(quest, parts), parts["proof"], quest.costs)
    chosen = proof.settings[proof.chosen]
    shown = bound.loss.show(proof.risks[proof.chosen])
    notes = [f"risk on the proof samples: {shown}", *bound.loss.notes]
    if not sum(chosen.measure.exit_share[:-1]):
        notes.append("nobody leaves early: nothing cheaper could be proved")
    return make_point(
        chosen, proof.settings, bound.promise, wish, parts, parts["proof"], records, tables, notes
    )
