"""metrics.jsonl and, where it is installed, TensorBoard."""

import json
from pathlib import Path
from typing import Any

from offramp.files import write_atomic

METRICS = "metrics.jsonl"


class MetricsLog:
    """Append one JSON object per line; on resume, lines beyond the checkpoint are dropped.

    Args:
        run: the run's folder.
        position: (stage index, step) of the checkpoint a run resumes from; None starts anew.
    """

    def __init__(self, run: Path, position: tuple[int, int] | None) -> None:
        self.path = run / METRICS
        kept = []
        if position is not None and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line a killed process was writing
                if (entry["stage_index"], entry["step"]) <= position:
                    kept.append(line)
        write_atomic(self.path, "".join(f"{line}\n" for line in kept))
        self._board = _tensorboard(run)

    def write(self, entry: dict[str, Any], *, at: int) -> None:
        """Append ``entry``; its numbers go to TensorBoard at step ``at`` of the whole run."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for key, value in entry.items():
                if isinstance(value, int | float) and key not in ("step", "stage_index"):
                    self._board.add_scalar(f"{entry['stage']}/{key}", value, at)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of a run's ``metrics.jsonl``."""
    path = run / METRICS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))
