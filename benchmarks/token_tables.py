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
        options = ", ".join(f"{k} = {v}" for k, v in (spec or {}).get("options", {}).items())
        name = f"{spec['name']} {options}".strip() if spec else "untouched"
        cells = [name, f"{row['top1']:.1f}", f"{base['top1'] - row['top1']:.1f}"]
        cells += [f"{row['macs'] / 1e9:.3f}", str(row["tokens"])]
        cells += [f"{t['ratio'][number - 1]:.2f}" if spec else "1" for t in times]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "What `auto` would run there:", ""]
    for t in times:
        told = "; ".join(f"{name}: {said['reason']}" for name, said in t["auto"].items())
        lines.append(f"- {t['engine']}, batch {t['batch']}: {told}")
    return "\n".join([*lines, "", "File: `benchmarks/results/token_reduction.json`.", ""])
