"""What fewer tokens were measured to be worth, as a part of docs/tokens.md."""

from typing import Any

Json = dict[str, Any]


def reducers(found: Json) -> str:
    """Every reducer at every strength, without training: accuracy, MACs and time."""
    hardware, times = found["environment"]["hardware"], found["times"]
    base = found["rows"][0]
    lines = [
        "### Without training",
        "",
        f"{found['model']}, {found['samples']:,} images, {hardware['cpu']} with "
        f"{hardware['threads']} threads; time as a multiple of the untouched model's on the same "
        "engine, in turns.",
        "",
        "| reducer | top-1, % | lost | GMACs | tokens, all blocks | "
        + " | ".join(f"{t['engine']}, batch {t['batch']}" for t in times)
        + " |",
        "|" + "---|" * (5 + len(times)),
    ]
    for number, row in enumerate(found["rows"]):
        spec = row["reducer"]
        cells = [_named(spec), f"{row['top1']:.1f}", f"{base['top1'] - row['top1']:.1f}"]
        cells += [f"{row['macs'] / 1e9:.3f}", str(row["tokens"])]
        cells += [f"{t['ratio'][number - 1]:.2f}" if spec else "1" for t in times]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "What `auto` would run there:", ""]
    for t in times:
        told = "; ".join(f"{name}: {said['reason']}" for name, said in t["auto"].items())
        lines.append(f"- {t['engine']}, batch {t['batch']}: {told}")
    return "\n".join([*lines, "", "File: `benchmarks/results/token_reduction.json`.", ""])


def _named(spec: Json | None) -> str:
    """A reducer with its options."""
    if spec is None:
        return "all tokens"
    options = ", ".join(f"{key} = {value}" for key, value in spec["options"].items())
    return f"{spec['name']} {options}".strip()


def losses(found: Json) -> str:
    """Answers lost and won on several sets."""
    sets = found["sets"]
    lines = [
        "### Is it the reducer's loss or the sample's?",
        "",
        f"{found['model']} without training: images that only the untouched model has right, and "
        "that only the reduced one has; points lost in brackets. *Slope*: as many tokens merged "
        "early (−1) or late (1).",
        "",
        "| reducer | GMACs | "
        + " | ".join(f"{n}: {s['images']:,} images, {s['top1']:.1f} %" for n, s in sets.items())
        + " |",
        "|" + "---|" * (2 + len(sets)),
    ]
    for row in found["rows"]:
        cells = [_named(row["reducer"]), f"{row['macs'] / 1e9:.3f}"]
        for name, one in row["sets"].items():
            points = 100 * (one["lost"] - one["won"]) / sets[name]["images"]
            cells.append(f"−{one['lost']} +{one['won']} ({points:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "File: `benchmarks/results/token_loss.json`.", ""])


WHY = (
    "Together they are chosen from what either alone offers too, so they are never slower by the "
    "times they were chosen by. Where engines are bound by calls, as with single small images, "
    "fewer tokens save little and exits alone are chosen."
)


def together(found: Json) -> str:
    """Tokens, exits, and both, at equal allowed loss."""
    lines = [
        "### Tokens and exits together",
        "",
        f"{found['run']} on {found['engine']}: speed-up in measured time over the untouched model "
        f"and points lost on {found['samples']:,} test images, of which it has "
        f"{found['accuracy']:.2f} % right; chosen on the calibration split by measured time.",
        "",
        "| batch | allowed loss | fewer tokens | early exits | both | what both are |",
        "|---|---|---|---|---|---|",
    ]
    for batch, rows in found["batches"].items():
        for drop, both in rows["both"].items():
            cells = [batch, drop]
            for name in ("tokens", "exits", "both"):
                row = rows[name][drop]
                cells.append(
                    f"{row['speedup']:.2f}×, lost {row['test']:.2f}" if row else "none keeps it"
                )
            cells.append(f"{_named(both['reducer'])}; {len(both['exits'])} exits")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", WHY, "", "File: `benchmarks/results/tokens_and_exits.json`.", ""])


def trained(found: Json) -> str:
    """Models fine-tuned with a reducer beside the one that was fine-tuned without."""
    rows, times = found["rows"], found["times"]
    hardware = found["environment"]["hardware"]
    heads = [f"{t['engine']}, batch {t['batch']}" for t in times]
    lines = [
        "### Fine-tuned with fewer tokens",
        "",
        f"Fine-tuned alike on {found['dataset'].rpartition(':')[2]}; accuracy on "
        f"{rows[0]['samples']:,} test images, and on the {rows[0]['held_out_samples']:,} that "
        f"nothing was trained on; images per second over the plain model's, {hardware['cpu']} with "
        f"{hardware['threads']} threads, in turns.",
        "",
        "| model | test, % | held out, % | GMACs | " + " | ".join(heads) + " |",
        "|" + "---|" * (4 + len(times)),
    ]
    for k, row in enumerate(rows):
        cells = [_named(row["reducer"])]
        cells += [f"{row['accuracy']:.1f}", f"{row['held_out']:.1f}", f"{row['macs'] / 1e9:.3f}"]
        cells += [f"{t['speedup'][k]:.2f}×" for t in times]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "File: `benchmarks/results/trained_tokens.json`.", ""])


def training(found: Json) -> str:
    """What a training step takes with and without a reducer."""
    lines = [
        "### Training steps",
        "",
        "| recipe | stage | batch | ms per step, first epoch | last epoch |",
        "|---|---|---|---|---|",
    ]
    for recipe in found["recipes"].values():
        for stage in recipe["stages"]:
            lines.append(
                f"| {recipe['name']} | {stage['name']} | {stage['batch_size']} | "
                f"{1000 * stage['seconds_per_step'][0]:.0f} | "
                f"{1000 * stage['seconds_per_step'][1]:.0f} |"
            )
    return "\n".join([*lines, "", "File: `benchmarks/results/training_cost_tokens.json`.", ""])
