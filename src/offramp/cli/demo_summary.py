"""What the demo ends with: the table, the promise, who left where, and whether depth mattered."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli.terminal import table

if TYPE_CHECKING:
    from offramp.calibration import OperatingPoint, Records
    from offramp.runs import RunFolder

Found = dict[str, Any]
MAX_DROP = 0.5


def fastest_exit(
    run: "RunFolder", sizes: Sequence[int], *, images: int, rounds: int, progress: bool
) -> Found:
    """Measured time when every sample leaves at the first exit, no other head compiled in."""
    from offramp.cli.bench import measure
    from offramp.policies import Confidence

    policy = Confidence.shared(Confidence.always, run.model.num_exits)
    pictures = run.images("test", images)
    found = measure(run, pictures, sizes, rounds, progress=progress, policy=policy, active=(0,))
    return found.model_dump(mode="json")


def summarise(
    run: "RunFolder", name: str, result: Found, timed: Found, first: Found, report: Path
) -> Found:
    """Everything the demo shows, as one JSON-able document."""
    point = result["points"][name]
    return {
        "run": str(run.path),
        "report": str(report),
        "point": name,
        **{key: point[key] for key in ("kept", "drop", "drop_interval", "verdict")},
        "by_digits": by_digits(run, run.point(name)[1], run.records("test", progress=False)),
        "evaluation": result,
        "benchmark": timed,
        "fastest": first["batches"],
    }


def by_digits(run: "RunFolder", point: "OperatingPoint", records: "Records") -> list[Found]:
    """Images with so many digits: how many, how deep they went, how often right."""
    import torch

    from offramp.calibration import replay

    decisions = replay(point.policy_object(), records, point.active)
    split = run.data.split("test")
    assert torch.equal(split.ids, records.ids)
    digits = split.attributes.get("digits")
    if digits is None:
        return []  # another data set, by an override
    blocks = torch.tensor(run.model.blocks)[decisions.exit].double()
    right = (decisions.prediction == records.labels).double()
    found = []
    for count in digits.unique().tolist():
        mine = digits == count
        found.append(
            {
                "digits": count,
                "images": int(mine.sum()),
                "mean_exit": float(decisions.exit[mine].double().mean()) + 1,
                "mean_blocks": float(blocks[mine].mean()),
                "accuracy": 100 * float(right[mine].mean()),
            }
        )
    return found


def summary(run: "RunFolder", found: Found) -> list[Any]:
    """The closing tables and sentences."""
    from offramp.report.tables import point_table, summary_table

    name, evaluation = found["point"], found["evaluation"]
    tables: list[Any] = [
        "",
        summary_table(evaluation, name, found["benchmark"], found["fastest"]),
        point_table(name, run.point(name)[1], evaluation["points"][name]),
    ]
    if found["by_digits"]:
        tables.append(digits_table(found["by_digits"]))
    return [*tables, *sentences(found)]


def digits_table(entries: list[Found]) -> Any:
    """How deep images with one to four digits went."""
    from offramp.report.tables import percent

    rows = [
        (
            str(entry["digits"]),
            str(entry["images"]),
            f"{entry['mean_exit']:.2f}",
            f"{entry['mean_blocks']:.2f}",
            percent(entry["accuracy"]),
        )
        for entry in entries
    ]
    columns = ["digits in the image", "images", "mean exit", "mean blocks", "accuracy"]
    return table("Digits in the image, and depth", columns, rows)


def sentences(found: Found) -> list[str]:
    """What was lost, whether the promise was kept, what timed it, and where the report is."""
    low, high = found["drop_interval"]
    entry = found["benchmark"]["results"][0]
    hardware = entry["environment"]["hardware"]
    kept = "[bold green]kept[/]" if found["kept"] else "[bold red]NOT kept[/]"
    return [
        f"Lost against the full model: {found['drop']:+.2f} points "
        f"(95 % interval {low:+.2f} … {high:+.2f}, "
        f"{found['evaluation']['samples']} test images).",
        f"The promise of at most {MAX_DROP:g} points is {kept}.",
        f"Time: {entry['engine']} on {hardware['cpu']}, {hardware['threads']} threads, medians.",
        f"Report: [bold]{found['report']}[/]",
    ]
