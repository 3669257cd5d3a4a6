"""What promises, thresholds and deadlines were measured to be worth, as parts of
docs/early_exit.md."""

from typing import Any

Json = dict[str, Any]


def methods(found: Json) -> str:
    """`offramp compare`'s table over all methods."""
    from offramp.comparison import Comparison
    from offramp.report.comparison import markdown

    fields = Comparison.model_fields
    known = Comparison.model_validate({k: v for k, v in found.items() if k in fields})
    return (
        "### Methods\n\n"
        + markdown(known)
        + "\n![Accuracy over the share of MACs, one line per method]"
        "(../benchmarks/results/method_comparison.png)\n"
        + "\nHeads and epochs of training (heads of the frozen ones on cached features; the others "
        "with the backbone): "
        + "; ".join(dict.fromkeys(_trained(m) for m in known.methods if _epochs(m.recipe)))
        + ". Methods on the finished backbone share one, so their spread is of the heads alone; "
        "cascades have one seed. Training times were taken beside other load. *Time*: speed-up "
        "over the method's own backbone on the engine, image by image, where at most one point "
        "may be lost; settings are chosen by the engine's latency table, so exits whose calls "
        "take longer than they save are off: all of them for some methods, where the plain "
        "model is left and the ratio is noise. Only the first seed is timed. The heads of ztw "
        "feed each other and stay on.\n"
        "\nFile: `benchmarks/results/method_comparison.json`.\n"
    )


def _trained(method: Any) -> str:
    exits = method.recipe["exits"]
    named = {exits["layout"]} if isinstance(exits, dict) else {one["head"] for one in exits}
    return f"{method.name} ({', '.join(sorted(named))}) {_epochs(method.recipe)}"


def _epochs(recipe: Json) -> str:
    """Epochs of a recipe's stages, in their order; nothing where none is trained."""
    stages = [stage for stage in recipe["recipe"].values() if isinstance(stage, dict)]
    return " + ".join(str(stage["epochs"]) for stage in stages if stage.get("epochs"))


def risks(found: Json) -> str:
    """How often each method broke its bound, and what it cost."""
    lines = [
        "### Are proofs kept?",
        "",
        f"{found['draws']} times {found['samples']:,} of {found['pool']:,} real records are drawn, "
        f"risk ≤ {found['risk']:g} ({found['risk_kind']}) is proved with δ = {found['delta']:g} "
        f"and judged on the samples not drawn; cost in {found['unit']}, over the best setting of "
        "the same path in hindsight. δ is promised by ltt and ucb only; crc bounds the mean risk, "
        "naive nothing. *Broken*: draws with a risk above the bound.",
        "",
        "| path, method | broken | mean risk | cost | over hindsight |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["results"].items():
        lines.append(
            f"| {name} | {100 * row['broken']:.1f} % | {100 * row['risk_mean']:.2f} % | "
            f"{row['cost']:.3f} | {100 * row['over_hindsight']:+.1f} % |"
        )
    return "\n".join([*lines, "", "File: `benchmarks/results/risk_control.json`.", ""])


def thresholds(found: Json) -> str:
    """A threshold per exit against one for all, and how long a front takes."""
    lines = [
        "### A threshold per exit",
        "",
        f"Cost in {found['unit']}, as a share of the full model's, at equal loss on the test split "
        f"({found['run']}, {found['engine']}, {found['precision']}):",
        "",
        "| points lost | coordinate ascent | dynamic programming | one shared threshold |",
        "|---|---|---|---|",
    ]
    for drop, row in found["at_equal_drop"].items():
        cells = ("–" if row[n] is None else f"{row[n]:.3f}" for n in SEARCHES)
        lines.append(f"| {drop} | " + " | ".join(cells) + " |")
    timing = found["timing"]
    told = ", ".join(f"{n} {t['cpu_seconds']:.2f} s" for n, t in timing["policies"].items())
    lines += [
        "",
        f"From records of {timing['samples']:,} samples, {timing['exits']} exits and "
        f"{timing['classes']} classes to an operating point with its front, on one core: {told}.",
        "",
        "File: `benchmarks/results/threshold_search.json`.",
        "",
    ]
    return "\n".join(lines)


SEARCHES = ("coordinate", "dynamic", "shared")


def deadlines(found: Json) -> str:
    """Budgets kept, and accuracy against the best exit that fits."""
    lines = [
        "### Are deadlines kept?",
        "",
        "Single requests with random budgets, all exits on and nobody leaving by confidence. In "
        "brackets: the time of one segment.",
        "",
        "| engine | seed | requests | within budget | within budget + one segment | accuracy | "
        "accuracy of the best exit that fits |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in found["entries"].values():
        accuracy, more = entry["accuracy"], entry["one_segment_ms"]
        lines.append(
            f"| {entry['engine']}, {entry['precision']} | {entry['seed']} | "
            f"{entry['data']['requests']:,} | "
            f"{100 * entry['within_budget']:.1f} % | "
            f"{100 * entry['within_budget_and_segment']:.1f} % ({more:.2f} ms) | "
            f"{accuracy['answered']:.2f} % | {accuracy['best']:.2f} % |"
        )
    return "\n".join([*lines, "", "File: `benchmarks/results/deadlines.json`.", ""])


def counting(found: Json) -> str:
    """Error of every exit, and what points of policy ``settled`` save."""
    first = next(iter(found["heads"].values()))
    lines = [
        "### Counting people",
        "",
        f"DeiT-tiny on crops of 96 px of ShanghaiTech part B, {first['samples']:,} test crops; "
        "mean absolute and root mean squared error per crop and, added up, per photo.",
        "",
        "| exits | leaving at | MAE, crop | RMSE | MAE, photo | RMSE | MACs |",
        "|---|---|---|---|---|---|---|",
    ]
    for head, row in found["heads"].items():
        for one in row["exits"]:
            lines.append(_counted(head, one["name"], one, one["macs"]))
        for name, point in row["points"].items():
            told = f"point {name}, {point['drop']:+.3f} per crop"
            lines.append(_counted(head, told, point["figures"], point["speedup_macs"]))
    return "\n".join([*lines, "", "File: `benchmarks/results/crowd_counting.json`.", ""])


def _counted(head: str, name: str, figures: Json, macs: float) -> str:
    crop = f"{figures['mae']:.3f} | {figures['rmse']:.3f}"
    photo = f"{figures['photo_mae']:.2f} | {figures['photo_rmse']:.2f}"
    return f"| {head} | {name} | {crop} | {photo} | {macs:.2f}× |"
