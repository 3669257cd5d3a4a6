"""The model card: what the model is, how it was trained, and what was measured."""

from typing import Any

import yaml

from offramp.model_config import ModelConfig
from offramp.tasks import figure_keys, figure_name, task_named


def model_card(
    config: ModelConfig,
    *,
    recipe: dict[str, Any] | None = None,
    measured: dict[str, Any] | None = None,
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        config: the model's description.
        recipe: how it was trained, as resolved.
        measured: ``{"dataset", "split", "samples", "task", "rows": [{"name", "accuracy",
            "layers", "macs", "time"}]}``, accuracies in percent, in regression ``mae`` and ``rmse``
            instead, speed-ups as ratios; absent ones are None.
    """
    known = [] if config.external else config.sources  # an object has no place on the Hub
    sources = [name if "/" in name else f"timm/{name}" for name in known]
    front: dict[str, Any] = {
        "library_name": "offramp",
        "pipeline_tag": "image-classification" if config.task == "classification" else "other",
        "tags": ["early-exit", "dynamic-inference", "offramp"],
        **({"base_model": sources[0] if len(sources) == 1 else sources} if sources else {}),
    }
    heads = "\n".join(
        f"| block {spec.after} | {spec.head} | "
        f"{', '.join(f'{k} = {v}' for k, v in spec.options.items()) or '–'} |"
        for spec in config.exits
    )
    height, width = config.preprocessing.image_size
    names = ", ".join(config.labels or ())
    answers = f"{config.num_classes} classes"
    if config.task == "regression":
        answers = f"One number{f' ({names})' if names else ''}"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {config.backbone} with early exits",
        f"{answers}, {height}×{width} px. Every sample stops at the first exit "
        "whose policy is satisfied.",
        '```python\nimport offramp\n\nmodel = offramp.load("FOLDER OR HUB ID")\n```',
        f"## Exits\n\n| after | head | options |\n|---|---|---|\n{heads}",
        _measured(measured),
    ]
    if recipe is not None:
        parts.append(f"## Recipe\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False)}```")
    return "\n\n".join(parts) + "\n"


def _measured(measured: dict[str, Any] | None) -> str:
    if not measured:
        return "## Measured\n\nNothing has been measured with these weights yet."
    task = task_named(measured.get("task", "classification"))
    keys = figure_keys(measured["rows"][0])
    rows = "\n".join(
        f"| {row['name']} | {' | '.join(task.show(row.get(key)) for key in keys)} | "
        f"{_ratio(row.get('layers'))} | {_ratio(row.get('macs'))} | {_ratio(row.get('time'))} |"
        for row in measured["rows"]
    )
    heads = " | ".join(figure_name(key) for key in keys)
    return (
        f"## Measured\n\n{measured['dataset']}, {measured['split']} split, "
        f"{measured['samples']} samples. Speed-ups against the unmodified backbone.\n\n"
        f"| | {heads} | layers | MACs | time |\n{'|---' * (len(keys) + 4)}|\n{rows}"
    )


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"
