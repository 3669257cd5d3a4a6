"""offramp.compile: a model and an operating point become something that answers quickly."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from offramp.costs.environment import describe_versions
from offramp.costs.table import CostTable
from offramp.errors import OfframpError
from offramp.policies import Policy
from offramp.runtime.batching import BatchPlan, BatchTimes
from offramp.runtime.engines import ENGINES, EngineOptions
from offramp.runtime.inputs import InputCheck
from offramp.runtime.parts import build_parts
from offramp.runtime.prediction import ExitTables, temperatures_of
from offramp.runtime.runner import Runner

if TYPE_CHECKING:
    from offramp.calibration.point import OperatingPoint
    from offramp.model import MultiExitModel


def compile_runner(
    model: "MultiExitModel",
    point: "OperatingPoint | None" = None,
    *,
    policy: Policy | None = None,
    active: Sequence[int] | None = None,
    engine: str | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    calibration: Tensor | None = None,
    options: EngineOptions | None = None,
    costs: CostTable | None = None,
    plan: BatchPlan | None = None,
    times: BatchTimes | None = None,
) -> Runner:
    """Compile a model for an operating point, or for a policy and the exits it uses.

    Only active exits are compiled in; segments without one are merged into the next. Compile
    again after the model's weights change.

    Args:
        model: the multi-exit model.
        point: from ``offramp.calibrate``; brings its policy and active exits.
        policy: instead of a point. May be left out when no early exit is active.
        active: early exits by index, with ``policy``; all of them when omitted.
        engine: name in the engine registry; the point's own, or ``torch``, when omitted.
        precision: what to compute in; the point's own, or the engine's default, when omitted.
        device: where torch engines run; the model's own when omitted.
        threads: CPU threads of one call; torch's number when omitted.
        batch_size: the largest batch that will come, where an engine gains from knowing it.
        calibration: images (N, 3, H, W) from which int8 ranges are read.
        options: precision, device, threads, batch_size and calibration in one.
        costs: cost table in MACs, for `Prediction.cost`; the point's own when omitted.
        plan: batch sizes to run at and where compaction pays, made from `Runner.measure`; when
            omitted every size runs as it is and stopped samples are always dropped.
        times: what deadlines expect of the segments, from `Runner.measure`; measured at the first
            deadline when omitted. For pure anytime answers give a policy that never stops.

    Warns:
        UserWarning: for each library that changed since the point was calibrated.

    Raises:
        OfframpError: for an unknown engine, a point of another model, engine or precision, or a
            policy that does not fit the model.
    """
    if point is not None and (policy is not None or active is not None):
        raise OfframpError("give an operating point, or policy and active, not both")
    if point is not None:
        policy, active, costs = point.policy_object(), point.active, costs or point.macs
        engine, precision = engine or point.engine, precision or point.precision
    engine = engine or "torch"
    options = options or EngineOptions(
        precision=precision,
        device=None if device is None else torch.device(device),
        threads=threads,
        batch_size=batch_size,
        calibration=calibration,
    )
    build = ENGINES.get(engine)(options)
    chosen = sorted(set(range(len(model.exits)) if active is None else active))
    if policy is None and chosen:
        raise OfframpError("compile needs an operating point or a policy (or active=() for none)")
    if policy is not None:
        policy.check(model.num_exits)
        policy.check_task(model.config.task)
    if point is not None:
        fingerprint, versions = model.fingerprint(), describe_versions()
        wanted = str(next(model.parameters()).dtype).removeprefix("torch.")
        computed = wanted if build.precision == "model" else build.precision
        for change in point.check(fingerprint, engine, computed, versions):
            warnings.warn(change, stacklevel=2)
    parts = build_parts(model, chosen, policy, device=build.device, dtype=build.part_dtype)
    program = build.prepare(parts)
    if costs is not None and (costs.unit != "MACs" or costs.num_exits != model.num_exits):
        raise OfframpError(
            f"costs are {costs.unit} of {costs.num_exits} exits; expected MACs of {model.num_exits}"
        )
    runner = Runner(
        program,
        policy,
        check=InputCheck(
            model.chain.in_chans, model.chain.image_size, program.device, program.dtype
        ),
        num_classes=model.chain.num_classes,
        tables=_tables(model, policy, chosen, costs),
        exit_names=model.exit_names,
        engine=engine,
        plan=plan,
    )
    runner.times = times
    return runner


def _tables(
    model: "MultiExitModel", policy: Policy | None, active: Sequence[int], costs: CostTable | None
) -> ExitTables:
    return ExitTables(
        blocks=torch.tensor(model.blocks),
        macs=None if costs is None else torch.tensor(costs.leave_cost(active), dtype=torch.float64),
        temperatures=temperatures_of(policy),
        task=model.config.task,
    )
