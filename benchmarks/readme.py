"""Pictures and tables of README and docs, from committed results.

    python benchmarks/readme.py

Reads ``benchmarks/results/early_exit.json`` and ``compaction.json`` (the same LGViT run), writes
``docs/tradeoff.png`` and the part of ``README.md`` between the two marks, and that of each page in
``PAGES`` from its results.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from early_exit_tables import counting, deadlines, methods, risks, thresholds
from gate_tables import gates, sets, variants
from token_tables import losses, reducers, together, trained, training
from zoo_tables import levit, zoo

from offramp.costs import CostTable
from offramp.files import write_atomic
from offramp.report.style import figure, look, save_png, styled

HOME = Path(__file__).parents[1]
RESULTS = HOME / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
BATCH = "64"  # of the picture's time panel
PLAIN, TIMED = "deit-tiny-cifar100-112-finetune", "drop-1-time"
Json = dict[str, Any]


def read(file: str) -> Json:
    """A committed result."""
    found: Json = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return found


def main() -> None:
    accuracy, training = read("early_exit.json"), read("training_cost.json")
    minutes = {recipe["name"]: recipe["minutes"] for recipe in training["recipes"].values()}
    timing = read("compaction.json")
    lgvit = next(run for run in accuracy["runs"].values() if run["run"].endswith("lgvit"))
    linear = next(run for run in accuracy["runs"].values() if run["run"].endswith("linear"))
    table = CostTable.model_validate(timing["latency"][BATCH])
    picture = HOME / "docs" / "tradeoff.png"
    picture.parent.mkdir(exist_ok=True)
    with styled("readme"):
        save_png(draw(lgvit, linear, table), picture)
    fill(HOME / "README.md", words(lgvit, linear, timing, minutes))
    for page, parts in PAGES.items():
        made = [write(read(file)) for file, write in parts.items() if (RESULTS / file).is_file()]
        if made:
            fill(HOME / "docs" / page, "\n".join(made))


def fill(page: Path, measured: str) -> None:
    """Replace what stands between a page's two marks."""
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomic(page, before + BEGIN + "\n" + measured + END + after)


def draw(lgvit: Json, linear: Json, table: CostTable) -> Any:
    """Accuracy over the three speed-ups: LGViT's front, the baseline's, and each static exit."""
    colours = look(len(lgvit["exits"]))
    made, axes = figure(12, 4.6, 3, sharey=True, pad=0.1)
    full = lgvit["full_accuracy"]
    for axis, key in zip(axes, ("layers", "macs", "time"), strict=True):
        titles = {"layers": "Layers", "macs": "MACs", "time": f"Time, batch {BATCH}"}
        axis.set_title(titles[key])
        axis.set_xlabel("speed-up")
        axis.grid(axis="y")
        axis.axhline(full, color=colours.muted, lw=0.8, ls=(0, (2, 3)))
        if key != "time":
            rows = sorted(linear["front"], key=lambda row: row[key])
            xs, ys = [row[key] for row in rows], [row["accuracy"] for row in rows]
            axis.plot(xs, ys, color=colours.muted, ls=(0, (4, 1.5)), lw=1.3, label="linear exits")
        rows = sorted(lgvit["front"], key=lambda row: speedup(row, key, table))
        xs, ys = [speedup(row, key, table) for row in rows], [row["accuracy"] for row in rows]
        axis.plot(xs, ys, color=colours.accent, lw=1.8, label="LGViT exits")
        axis.plot(1, full, "s", ms=6, color=colours.ink, label="full model")
        axis.set_xlim(0.95, 2.7)
        axis.set_ylim(full - 12, full + 1.5)
    axes[0].set_ylabel("CIFAR-100 test accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return made


def speedup(row: Json, key: str, table: CostTable) -> float:
    if key != "time":
        return float(row[key])
    return table.speedup(row["exit_share"], row["active"])


def words(lgvit: Json, linear: Json, timing: Json, minutes: dict[str, float]) -> str:
    """The measured section as Markdown."""
    hardware = timing["environment"]["hardware"]
    lines = [
        f"DeiT-tiny at 112 px on CIFAR-100: {lgvit['samples']:,} test images, thresholds chosen on "
        f"a calibration split, torch on {hardware['cpu']} with {hardware['threads']} threads; "
        f"times are of {timing['data']['images']} of these images. *Lost* is against each model's "
        "own final exit.",
        "",
        f"LGViT training ends at {lgvit['full_accuracy']:.2f} % for the final exit after "
        f"{minutes[lgvit['run']]:.0f} minutes; the plain model, fine-tuned alone, reaches "
        f"{lgvit['reference_accuracy']:.2f} % in {minutes[PLAIN]:.0f}, joint training with plain "
        f"linear exits {linear['full_accuracy']:.2f} % in {minutes[linear['run']]:.0f}. Minutes "
        "are median step times multiplied by the number of steps; beside other work training "
        "takes longer.",
        "",
        "| promised loss | lost | layers | MACs | time, batch 1 | time, batch 64 | "
        "linear exits: lost | layers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for loss, row in lgvit["at_loss"].items():
        other = linear["at_loss"][loss]
        times = {b["batch_size"]: b for b in timing["points"][f"drop-{loss}"]["batches"]}
        cells = [
            "1 point" if loss == "1" else f"{loss} points",
            f"{row['drop']:.2f}",
            f"{row['layers']:.2f}×",
            f"{row['macs']:.2f}×",
            f"{times[1]['speedup_time']:.2f}×",
            f"{times[64]['speedup_time']:.2f}×",
            f"{other['drop']:.2f}",
            f"{other['layers']:.2f}×",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        *(
            f"Chosen for a layer speed-up of {ratio}×, LGViT's exits reach {_reached(row)}, linear "
            f"exits {_reached(linear['at_layer_speedup'][ratio])}."
            for ratio, row in lgvit["at_layer_speedup"].items()
        ),
        "",
        "Does compaction pay? One point calibrated on time measured at batch 1, against the "
        "unmodified model in the same run, everything on the timed images; *stream* regroups "
        "survivors of several batches:",
        "",
        "| batch | layers | MACs | time | time ÷ MACs | stream | stream ÷ MACs | "
        "no exit ever: time ÷ unmodified |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in timing["points"][TIMED]["batches"]:
        lines.append(
            f"| {row['batch_size']} | {row['speedup_layers']:.2f}× | {row['speedup_macs']:.2f}× | "
            f"{row['speedup_time']:.2f}× | {row['efficiency']:.2f} | "
            f"{row['speedup_stream']:.2f}× | {row['speedup_stream'] / row['speedup_macs']:.2f} | "
            f"{row['no_exit_overhead']:.3f} |"
        )
    return "\n".join(lines) + "\n\nFiles: `benchmarks/results/`, commands inside.\n"


def _reached(row: Json) -> str:
    """A setting's speed-up in layers and what it costs, or brings, in accuracy."""
    change = "gain" if row["drop"] < 0 else "lose"
    return f"{row['layers']:.2f}× and {change} {abs(row['drop']):.2f} points"


def backbones(found: Json) -> str:
    """One row per backbone: what it is, what it learnt, what its operating point saves."""
    models: dict[str, Json] = found["models"]
    first = next(iter(models.values()))
    hardware, settings = first["environment"]["hardware"], first["settings"]
    sizes = settings["bench"]["batch"].split(",")
    samples = " or ".join(f"{n:,}" for n in sorted({model["samples"] for model in models.values()}))
    columns = ["model", "family", "pixels", "parameters", "full MACs", "exits after", "training"]
    columns += ["full, %", "point, %", "lost", "layers", "MACs"]
    columns += [f"time, batch {size}" for size in sizes]
    lines = [
        f"{first['dataset']}: {samples} test images, torch on {hardware['cpu']} with "
        f"{settings['threads']} threads. The commonest answer alone would be right on about "
        f"{first['commonest']:.0f} %. Points promise at most {settings['max_drop']:g} "
        f"{'point' if settings['max_drop'] == 1 else 'points'} lost, on a calibration split; "
        "*full* and *point* are test accuracies in percent, *lost* their difference with its 95 % "
        "interval, and layers, MACs (of the heads too) and time are speed-ups.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for name, model in models.items():
        point, (height, width) = model["point"], model["image_size"]
        low, high = point["drop_interval"]
        kinds = dict.fromkeys(head["head"] for head in model["heads"])
        places = ", ".join(str(head["after"]) for head in model["heads"])
        cells = [
            name,
            model["family"],
            str(height) if height == width else f"{height}×{width}",
            f"{model['parameters'] / 1e6:.1f} M",
            f"{model['macs'] / 1e6:.0f} M",
            f"{places} of {model['depth']} ({'/'.join(kinds)})",
            f"{model['training_seconds']:.0f} s",
            f"{model['full_accuracy']:.2f}",
            f"{point['accuracy']:.2f}",
            f"{point['drop']:.2f} ({low:.2f} … {high:.2f})",
            f"{point['layers']:.2f}×",
            f"{point['macs']:.2f}×",
            *(f"{model['batches'][size]['speedup_time']:.2f}×" for size in sizes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nFile: `benchmarks/results/every_backbone.json`.\n"


def engines(found: Json) -> str:
    """Per engine one table of operating points, and what surrounds them."""
    first = next(iter(found["engines"].values()))
    hardware, data = first["environment"]["hardware"], first["data"]
    lines = [
        f"{found['model']} on {hardware['cpu']}, {hardware['threads']} threads, {data['images']} "
        f"{data['split']} images of {data['name']}; thresholds and exits chosen on the calibration "
        "split by time measured on the engine, accuracies on the whole test split. Milliseconds "
        "are medians over rounds; *time*, *reached*, *stream* and *no exits* are medians of each "
        "round's ratio, so they can differ from the quotient of the milliseconds, most where "
        "rounds scatter.",
    ]
    for entry in found["engines"].values():
        lines += ["", f"### {entry['engine']}, {entry['precision']}", ""]
        lines += [
            "| point | exits | lost | batch | ms per image | layers | MACs | time | ideal | "
            "reached | time ÷ MACs | stream | no exits | none fires |",
            "|" + "---|" * 14,
        ]
        for point in entry["points"].values():
            judged = point["evaluation"]
            for row in point["timing"]["batches"]:
                here = row["batch_size"] == point["planned_for_batch"]
                idle = f"{point['never_firing']:.2f}" if here else ""
                cells = [
                    f"≤ {point['max_drop']:g}, for batch {point['planned_for_batch']}",
                    str(len(point["active"])),
                    f"{judged['drop']:.2f}",
                    str(row["batch_size"]),
                    f"{row['dynamic_ms']:.2f} of {row['full_ms']:.2f}",
                    f"{row['speedup_layers']:.2f}×",
                    f"{row['speedup_macs']:.2f}×",
                    f"{row['speedup_time']:.2f}×",
                    f"{row['speedup_ideal']:.2f}×",
                    f"{row['realised']:.2f}",
                    f"{row['efficiency']:.2f}",
                    f"{row['speedup_stream']:.2f}×",
                    f"{row['no_exit_overhead']:.2f}",
                    idle,
                ]
                lines.append("| " + " | ".join(cells) + " |")
        memory = entry["memory_mib"]
        lines += [
            "",
            f"Peak memory of a process with the bundle {memory['point']:.0f} MiB, with the "
            f"unmodified model {memory['unmodified']:.0f} MiB ({memory['ratio']:.2f}×).",
        ]
        if "single" in entry:
            alone = entry["single"]
            lines += [
                "",
                f"`single.onnx` in plain ONNX Runtime: the same exit for {alone['same_exit']} and "
                f"the same label for {alone['same_label']} of {alone['images']} images, "
                f"{alone['time_over_bundle']:.2f}× the bundle's time at batch 1, "
                f"{alone['bytes_over_weights']:.2f}× the size of the weights.",
            ]
    lines += [
        "",
        *against_eager(found["engines"]),
        "*No exits*: the runner without early exits over the unmodified model. *None fires*: all "
        "exits of the point active but none firing, over the same exits in one graph.",
    ]
    return "\n".join(lines) + "\n\nFile: `benchmarks/results/engines.json`.\n"


def against_eager(entries: Json) -> list[str]:
    """What precision, engine and exits bring together, where the eager model was timed as well."""
    eager = entries.get("torch:float32")
    if eager is None:
        return []
    full = {
        row["batch_size"]: row["full_ms"]
        for point in eager["points"].values()
        for row in point["timing"]["batches"]
    }
    gains = []
    for name, entry in entries.items():
        best: dict[int, float] = {}
        for point in entry["points"].values():
            if point["evaluation"]["drop"] <= 0.5:
                for row in point["timing"]["batches"]:
                    size = row["batch_size"]
                    if size in full:
                        best[size] = max(best.get(size, 0), full[size] / row["dynamic_ms"])
        told = ", ".join(f"{gain:.1f}× at batch {size}" for size, gain in sorted(best.items()))
        if told and name != "torch:float32":
            gains.append(f"{name} {told}")
    return [
        "Time of the unmodified model in eager PyTorch over that of the quickest point that loses "
        f"at most 0.5 points: {'; '.join(gains)}.",
        "",
    ]


PAGES: dict[str, dict[str, Callable[[Json], str]]] = {
    "backbones.md": {
        "every_backbone.json": backbones,
        "zoo_attention.json": zoo,
        "levit_headline.json": levit,
    },
    "engines.md": {"engines.json": engines},
    "early_exit.md": {
        "method_comparison.json": methods,
        "risk_control.json": risks,
        "threshold_search.json": thresholds,
        "deadlines.json": deadlines,
        "crowd_counting.json": counting,
        "jei_dnn.json": gates,
        "jei_dnn_regret.json": gates,
        "jei_dnn_t2t.json": gates,
        "jei_dnn_variants.json": variants,
    },
    "tokens.md": {
        "token_reduction.json": reducers,
        "token_loss.json": losses,
        "trained_tokens.json": trained,
        "training_cost_tokens.json": training,
        "tokens_and_exits.json": together,
    },
    "uncertainty.md": {"uncertainty.json": sets},
}

if __name__ == "__main__":
    sys.exit(main())
