"""What the demo ends with: the table, the promise, who left where, and whether depth mattered."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli.terminal import percent, table, times

if TYPE_CHECKING:
    from offramp.calibration import OperatingPoint, Records
    from offramp.runs import RunFolder

Found = dict[str, Any]


def fastest_exit(
    run: "RunFolder", sizes: Sequence[int], *, images: int, rounds: int, progress: bool
) -> Found:
    """Measured time when every sample leaves at the first exit, no other head compiled in."""
    from offramp.cli.bench import measure
    from offramp.cli.images import real_images
    from offramp.policies import Confidence

    policy = Confidence.shared(Confidence.always, run.model.num_exits)
    pictures = real_images(run, "test", images)
    found = measure(run, pictures, sizes, rounds, progress=progress, policy=policy, active=(0,))
    return found.model_dump(mode="json")


def summarise(
    run: "RunFolder", name: str, result: Found, timed: Found, first: Found, report: Path
) -> Found:
    """Everything the demo shows, as one JSON-able document."""
    point, entry = result["points"][name], timed["results"][0]
    exits = result["exits"]
    chosen = run.point(name)[1]
    records = run.records("test", progress=False)
    rows = [
        _row(f"full model ({len(run.model.chain)} blocks)", exits[-1] | {"layers": 1, "macs": 1}),
        _row(
            f"point {name}",
            {
                "accuracy": point["accuracy"],
                "layers": point["speedup_layers"],
                "macs": point["speedup_macs"],
            },
            entry,
        ),
        _row(f"fastest exit ({exits[0]['name']})", exits[0], first),
    ]
    return {
        "run": str(run.path),
        "report": str(report),
        "point": name,
        "plain_accuracy": result["plain"]["accuracy"] if result["plain"] else None,
        "rows": rows,
        "samples": result["samples"],
        "drop": point["drop"],
        "drop_interval": point["drop_interval"],
        "kept": point["kept"],
        "verdict": point["verdict"],
        "exits": [
            {
                "name": exit["name"],
                "active": k == len(exits) - 1 or k in chosen.active,
                "accuracy": exit["accuracy"],
                "share": point["exit_share"][k],
                "leaver_accuracy": point["leaver_accuracy"][k],
            }
            for k, exit in enumerate(exits)
        ],
        "by_digits": by_digits(run, chosen, records),
        "engine": entry["engine"],
        "hardware": entry["environment"]["hardware"],
    }


def _row(name: str, exit: Found, bench: Found | None = None) -> Found:
    row = {"name": name, **{key: exit[key] for key in ("accuracy", "layers", "macs")}}
    # the full model is what the others are timed against
    return row | {
        "time": {str(b["batch_size"]): b["speedup_time"] for b in bench["batches"]} if bench else {}
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


def summary(found: Found) -> list[Any]:
    """The closing tables and sentences."""
    sizes = list(found["rows"][1]["time"])
    columns = ["", "accuracy", "layers", "MACs", *(f"time, batch {size}" for size in sizes)]
    rows = [
        (
            row["name"],
            percent(row["accuracy"]),
            times(row["layers"]),
            times(row["macs"]),
            *(times(row["time"].get(size, 1.0)) for size in sizes),
        )
        for row in found["rows"]
    ]
    leaving = [
        (
            exit["name"],
            percent(exit["accuracy"]),
            percent(100 * exit["share"], 1) if exit["active"] else "[dim]off[/]",
            percent(exit["leaver_accuracy"]),
        )
        for exit in found["exits"]
    ]
    parts: list[Any] = [
        "",
        table(
            f"Test split, {found['samples']} images; speed-up over the full model", columns, rows
        ),
        table(
            "Where samples leave",
            ["exit", "accuracy of all", "samples leaving", "accuracy of those"],
            leaving,
        ),
    ]
    if found["by_digits"]:
        parts.append(_digits_table(found["by_digits"]))
    return [*parts, *_sentences(found, sizes)]


def _digits_table(entries: list[Found]) -> Any:
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
    return table("Harder images go deeper", columns, rows)


def _sentences(found: Found, sizes: list[str]) -> list[str]:
    low, high = found["drop_interval"]
    said = [
        f"Lost against the full model: {found['drop']:.2f} points "
        f"(95 % interval {low:+.2f} … {high:+.2f})."
    ]
    if found["kept"]:
        said.append("[bold green]The promise of at most 0.5 points is kept.[/]")
    else:
        said.append("[bold red]The promise of at most 0.5 points is NOT kept on the test split.[/]")
    if found["plain_accuracy"] is not None:
        plain = percent(found["plain_accuracy"])
        said.append(f"The plain model, trained on its own before it got exits: {plain}.")
    hardware = found["hardware"]
    said.append(
        f"Time: {found['engine']} on {hardware['cpu']}, {hardware['threads']} threads, medians."
    )
    said.append(f"Report: [bold]{found['report']}[/]")
    return said
