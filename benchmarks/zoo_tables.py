"""What ``zoo_attention.json`` and ``levit_headline.json`` hold, as parts of docs/backbones.md."""

from typing import Any

Json = dict[str, Any]


def zoo(found: Json) -> str:
    """Our networks against straightforward ones, and windows against dense attention."""
    hardware = found["environment"]["hardware"]
    lines = [
        "### The zoo's own attention",
        "",
        "Whole networks beside a straightforward implementation with the same weights, "
        f"{hardware['cpu']}, {hardware['threads']} threads, eager torch, {found['rounds']} "
        "interleaved rounds:",
        "",
        "| network | batch | ms per image | plain | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, rows in found["networks"].items():
        lines += [
            f"| {name} | {row['batch_size']} | {row['ms']:.1f} | {row['reference_ms']:.1f} | "
            f"{row['ratio']:.2f} |"
            for row in rows
        ]
    lines += [
        "",
        "ViL's sliding-window stages as the image grows, beside the same stages with dense "
        "attention (four times the pixels):",
        "",
        "| stages of | pixels | ms per image | growth | dense: growth |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["sliding_stages"].items():
        sizes, times = (" → ".join(f"{x:.{digits}f}" for x in row[key]) for key, digits in KEYS)
        lines.append(
            f"| {name} | {sizes} | {times} | {row['growth']:.2f}× | {row['dense_growth']:.2f}× |"
        )
    return "\n".join([*lines, "", "File: `benchmarks/results/zoo_attention.json`.", ""])


KEYS = (("sizes", 0), ("ms", 1))


def levit(found: Json) -> str:
    """LeViT's headline, checked on this machine."""
    claim = found["claim"]
    lines = [
        "### LeViT's headline",
        "",
        f"At {claim['accuracy']:g} % ImageNet accuracy LeViT is said to be "
        f"{claim['times_faster']:g}× as fast as EfficientNet on a CPU (arXiv 2104.01136). Pairs of "
        "the same published accuracy on one core here, batch 1:",
        "",
        "| engine | LeViT | % | EfficientNet | % | MACs | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["pairs"]:
        (ours, other), (one, two) = row["models"], row["accuracies"]
        lines.append(
            f"| {row['engine']} | {ours} | {one:.2f} | {other} | {two:.2f} | "
            f"{row['macs_ratio']:.2f}× | {row['times_faster']:.2f}× |"
        )
    return "\n".join([*lines, "", "File: `benchmarks/results/levit_headline.json`.", ""])
