"""The page's words and rows: headline, tables, environment, commands."""

from typing import Any

from offramp.calibration import Reliability
from offramp.costs.environment import describe_hardware, describe_versions
from offramp.report.findings import Chosen, Findings
from offramp.report.spots import Spot
from offramp.report.tables import percent, signed, spread, threshold, times
from offramp.report.timing import NOT_MEASURED
from offramp.tasks import Task
from offramp.uncertainty import exit_answers
from offramp.uncertainty.metrics import tell_apart

FRONT_ROWS = 16
Row = dict[str, Any]


def headline(findings: Findings) -> Row | None:
    """What the chosen point achieves: time leads where it was measured."""
    chosen = findings.headline
    if chosen is None:
        return None
    said = chosen.evaluation
    low, high = said.drop_interval
    batches = findings.timing.batches(chosen.name)
    spot = chosen.spot
    claim = f"{times(spot.time)} faster" if spot.time else f"{times(spot.macs)} fewer MACs"
    where = findings.timing.where if spot.time else f"time {NOT_MEASURED}"
    task = findings.task
    change = task.show_loss(said.drop) if task.fewer else _change(said.drop)
    return {
        "claim": f"{claim}, {change}",
        "where": where,
        "name": chosen.name,
        "kept": said.kept,
        "promise": str(said.promise),
        "interval": f"95 % interval of the loss {signed(low)} … {signed(high)} {task.unit}",
        "samples": f"{said.n} {said.split} samples",
        "accuracy": task.show(said.accuracy),
        "full": task.show(said.full_accuracy),
        "layers": times(spot.layers),
        "macs": times(spot.macs),
        "time": times(spot.time),
        "time_note": findings.timing.where if spot.time else NOT_MEASURED,
        "more_time": [(b.batch_size, times(b.speedup_time)) for b in batches[1:]],
        "leads": "time" if spot.time else "macs",
        "notes": [*_tokens(chosen), *chosen.point.notes],
    }


def promises(findings: Findings) -> list[Row]:
    """What every point promised, and whether that held on the evaluated split."""
    rows = []
    for chosen in findings.chosen:
        said = chosen.evaluation
        low, high = (signed(value) for value in said.drop_interval)
        lost = findings.task.show_loss(said.drop).replace("-", "−")
        loss = f"{lost} (95 % interval {low} … {high})"
        rows.append({"name": chosen.name, "kept": said.kept, "promise": said.promise, "loss": loss})
    return rows


def summary(findings: Findings) -> list[Row]:
    """Full model, plain backbone, points, and everything leaving at each exit."""
    full, task = findings.full, findings.task
    rows = [_row(full, full, "full", task)]
    if findings.plain is not None:
        plain = Spot("plain backbone, trained alone", findings.plain, 1.0, 1.0, full.time)
        rows.append(_row(plain, full, "plain", task))
    for number, chosen in enumerate(findings.chosen):
        rows.append(_row(chosen.spot, full, "chosen" if number == 0 else "point", task))
    rows += [_row(spot, full, f"exit exit-{k}", task) for k, spot in enumerate(findings.static)]
    return rows


def exits(findings: Findings, chosen: Chosen, found: list[Reliability]) -> list[Row]:
    """A point exit by exit."""
    point, said = chosen.point, chosen.evaluation
    more = findings.more_of(chosen.records)
    last = len(point.exit_names) - 1
    return [
        {
            "name": name,
            "k": k,
            "on": k == last or k in point.active,
            "threshold": "always" if k == last else threshold(point, k),
            "temperature": _temperature(chosen, k),
            "share": percent(100 * said.exit_share[k], 1),
            "leavers": findings.task.show(said.leaver_accuracy[k]),
            "accuracy": findings.task.show(findings.task.value(chosen.records.accuracy[k])),
            "more": [findings.task.show(value) for value in more[k].values()],
            "ece": percent(100 * found[k].ece, 1) if found else None,
            "ranking": _ranking(chosen, k) if found else None,
        }
        for k, name in enumerate(point.exit_names)
    ]


def front(findings: Findings) -> list[Row]:
    """Settings of the newest point's policy, dearest first, on the evaluated split."""
    if not findings.fronts:
        return []
    pairs = zip(findings.fronts[0].settings, findings.fronts[0].spots, strict=True)
    task = findings.task
    rows = [_row(spot, findings.full, "", task) | {"on": len(s.active)} for s, spot in pairs]
    return spread(rows[::-1], FRONT_ROWS)


def timings(findings: Findings) -> list[Row]:
    """Every measured batch size on every engine."""
    return [
        {
            "engine": result.engine,
            "batch": batch.batch_size,
            "full": f"{batch.full_ms:.3f}",
            "dynamic": f"{batch.dynamic_ms:.3f}",
            "layers": times(batch.speedup_layers),
            "macs": times(batch.speedup_macs),
            "time": times(batch.speedup_time),
            "efficiency": f"{batch.efficiency:.2f}",
            "overhead": f"{signed(100 * (batch.no_exit_overhead - 1), 1)} %",
        }
        for result in findings.timing.results
        for batch in sorted(result.batches, key=lambda b: b.batch_size)
    ]


def environment(findings: Findings) -> dict[str, list[tuple[str, str]]]:
    """Model, data, hardware and versions that the numbers belong to."""
    meta, model = findings.records.meta, findings.run.model
    height, width = model.preprocessing.image_size
    counts = model.parameter_counts()
    results = findings.timing.results
    timed = results[0].environment if results else None
    hardware = timed["hardware"] if timed else describe_hardware()
    memory = hardware.get("memory_gib")
    machine = [
        ("processor", f"{hardware['cpu']} ({hardware['architecture']}, {hardware['system']})"),
        ("cores", f"{hardware['cores']}, {hardware['threads']} threads used"),
        ("memory", f"{memory:g} GiB" if memory else "unknown"),
        ("GPU", ", ".join(hardware["gpus"]) or "none"),
    ]
    subject = [
        ("backbone", model.config.backbone),
        ("blocks", f"{meta.blocks}, exits after {', '.join(map(str, meta.positions)) or '–'}"),
        ("heads", ", ".join(spec.head for spec in model.config.exits) or "–"),
        ("image", f"{height} × {width} px, {_answers(findings)}"),
        ("parameters", f"{_millions(counts['backbone'])} + {_millions(counts['exits'])} in exits"),
        ("MACs", f"{findings.run.costs.full / 1e6:,.1f} M of the unmodified model"),
        ("data", f"{meta.dataset}, {meta.split} split, {len(findings.records)} samples"),
        ("arithmetic", f"{meta.engine}, {meta.precision}"),
        ("fingerprint", meta.fingerprint),
    ]
    versions = {**describe_versions(), **(timed["versions"] if timed else {}), **meta.versions}
    place = "timed on" if timed else "written on (nothing was timed)"
    return {"model": subject, place: machine, "versions": list(versions.items())}


def commands(findings: Findings) -> list[str]:
    """How these numbers come about again."""
    name = findings.run.path.resolve().name
    lines = [f"offramp train {name}/recipe.yaml"]
    for chosen in reversed(findings.chosen):
        lines.append(f"offramp calibrate {name} {chosen.point.asked.flags} --name {chosen.name}")
    lines.append(f"offramp eval {name} --split {findings.split}")
    for result in findings.timing.results:
        sizes = ",".join(str(batch.batch_size) for batch in result.batches)
        point = f" --point {findings.timing.point}" if findings.timing.point else ""
        lines.append(f"offramp bench {name} --engine {result.engine} --batch {sizes}{point}")
    return [*lines, f"offramp report {name}"]


def _tokens(chosen: Chosen) -> list[str]:
    spec = chosen.point.reducer
    return [] if spec is None else [f"the model runs with fewer tokens, {spec}"]


def _change(drop: float) -> str:
    return f"{abs(drop):.2f} points {'lost' if drop >= 0 else 'gained'}"


def _answers(findings: Findings) -> str:
    config = findings.run.model.config
    if config.task == "regression":
        return "one number"
    return f"{config.num_classes} classes"


def _row(spot: Spot, full: Spot, kind: str, task: Task) -> Row:
    return {
        "name": f"everything at {spot.name}" if kind.startswith("exit") else spot.name,
        "kind": kind,
        "accuracy": task.show(spot.accuracy),
        "change": "" if spot is full else signed(spot.accuracy - full.accuracy),
        "layers": times(spot.layers),
        "macs": times(spot.macs),
        "time": times(spot.time),
    }


def _ranking(chosen: Chosen, k: int) -> str:
    """How well an exit's confidence tells its wrong answers from its right ones: AUROC."""
    temperatures = chosen.point.policy.get("temperatures")
    answers = exit_answers(chosen.records, k, temperatures)
    told = tell_apart(-answers.confidence, ~answers.right)
    return "–" if told is None else f"{told[0]:.3f}"


def _temperature(chosen: Chosen, k: int) -> str | None:
    """Temperature of an exit; None for policies without, or where all are 1."""
    values = chosen.point.policy.get("temperatures")
    return None if not values or set(values) == {1.0} else f"{values[k]:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
