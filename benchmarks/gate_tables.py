"""What gates and prediction sets were measured to be worth, as parts of the docs."""

from typing import Any

Json = dict[str, Any]
TAUGHT = {
    "subsequent": "Gates learned the paper's targets, 1 from the best exit on.",
    "regret": "Gates learned what stopping saves (`targets: regret`).",
}


def gates(found: Json) -> str:
    """Accuracy at equal MACs: learned gates against thresholds, over seeds."""
    seeds, targets = found["seeds"], found["turns"]["targets"]
    kind = "" if targets == "subsequent" else f", targets: {targets}"
    lines = [
        f"### Gates against thresholds, {found['backbone']} on {found['dataset']}{kind}",
        "",
        "Test accuracy in percent at equal shares of the unmodified model's MACs; mean and "
        f"standard deviation of {len(seeds)} seeds of the heads on one frozen backbone "
        f"({seeds[0]['full_accuracy']:.2f} %), best model of each sweep by the calibration split. "
        "*Rule*: the paper's hazard of one half; *stopping rule*: each gate by itself at one half. "
        "*Gates* and *stopping*: thresholds on hazards and on gates. *Confidence* and *entropy*: "
        "thresholds on the same heads. *Plain*: heads trained without gates. A dash: no model of "
        f"the sweep is that cheap. {TAUGHT[targets]}",
        "",
        "| | " + " | ".join(f"{100 * budget:g} %" for budget in found["budgets"]) + " | mean |",
        "|---|" + "---|" * (len(found["budgets"]) + 1),
    ]
    for name, row in found["summary"].items():
        if "by_budget" in row:
            cells = [_signed(value) for value in row["by_budget"]] + [_signed(row["mean"])]
        else:
            pairs = zip(row["mean"], row["std"], strict=True)
            cells = ["–" if m != m or m is None else f"{m:.2f} ± {s:.2f}" for m, s in pairs] + [""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def variants(found: Json) -> str:
    """One seed under several settings: what the paper's rule reaches, against thresholds."""
    lines = [
        "### Other ways to train the gates",
        "",
        "One seed; test accuracy in percent at equal MACs of the paper's rule, and in brackets its "
        "lead over confidence thresholds on the same heads. A dash: the sweep has no model there.",
        "",
        "| run | " + " | ".join(f"{100 * budget:g} %" for budget in found["budgets"]) + " |",
        "|---|" + "---|" * len(found["budgets"]),
    ]
    for seed in found["seeds"]:
        cells = []
        for budget in found["budgets"]:
            rule = seed["accuracy"]["rule"][f"{budget:g}"]
            other = seed["accuracy"]["confidence"][f"{budget:g}"]
            known = rule is not None and rule == rule
            cells.append(f"{rule:.2f} ({rule - other:+.2f})" if known else "–")
        lines.append(f"| {seed['run']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "File: `benchmarks/results/jei_dnn_variants.json`.", ""])


def sets(found: Json) -> str:
    """Honesty of the mixture's confidence, coverage and size of prediction sets."""
    lines = [
        "### Measured",
        "",
        "Gates of recipe `jei_dnn`, with the paper's targets under its rule (policy `jei_dnn`) or "
        "with `targets: regret` (policy `stopping`), and thresholds on the same heads' confidence "
        "at equal cost. Scores are of the test split.",
        "",
        "| run | policy | MACs | accuracy, % | ECE, % | adaptive ECE, % | NLL |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        for name, row in run["policies"].items():
            s = row["scores"]
            cells = [_last(run["run"]), name, f"{row['cost']:.2f}", f"{s['accuracy']:.2f}"]
            cells += [f"{100 * s[key]:.2f}" for key in ("ece", "adaptive_ece")]
            lines.append("| " + " | ".join([*cells, f"{s['nll']:.3f}"]) + " |")
    lines += [
        "",
        f"Prediction sets over {found['draws']} resampled halves: coverage of the mixture, of the "
        "least and most covered exit, and classes in a set.",
        "",
        "| run | policy | sets | covered, % | by exit, % | size |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        for name, row in run["policies"].items():
            for way, made in row["sets"].items():
                exits = [100 * e["coverage"] for e in made["exits"].values()]
                cells = [_last(run["run"]), name, way, f"{100 * made['coverage']:.2f}"]
                cells += [f"{min(exits):.1f} … {max(exits):.1f}", f"{made['size']:.2f}"]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "File: `benchmarks/results/uncertainty.json`.", ""])


def _signed(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:+.2f}"


def _last(path: str) -> str:
    return "λ " + path.rstrip("/").rpartition("/")[2]
